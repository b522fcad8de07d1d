-- The record with its marks, flat. KEYS: record.
return redis.call('HGETALL', KEYS[1])
