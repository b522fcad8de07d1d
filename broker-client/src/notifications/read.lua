-- Marks a record read by a user. KEYS: record. ARGV: now, user, "1" for the record with its marks, flat.
if redis.call('HEXISTS', KEYS[1], 'document') == 0 or redis.call('HEXISTS', KEYS[1], 'gone') == 1 then
  return {}
end
redis.call('HSETNX', KEYS[1], 'read:' .. ARGV[2], ARGV[1])
redis.call('HSETNX', KEYS[1], 'delivered_at', ARGV[1])
if ARGV[3] == '1' then return redis.call('HGETALL', KEYS[1]) end
return {}
