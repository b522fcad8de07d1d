-- All recipients have their entries: the fan-out may begin. KEYS: record, outbox. ARGV: id, due.
if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('HSET', KEYS[1], 'indexed', 1) end
redis.call('ZADD', KEYS[2], 'XX', ARGV[2], ARGV[1])
return 1
