-- A holder puts a user at a resource; announced in the same step when they were not there.
-- KEYS 1 entries (user -> 'ms json', 'pms json' when a backend's), 2 holders (holder -> user), 3 counts (user -> holders)
-- ARGV 1 holder, 2 user, 3 entry, 4 message, 5 pub/sub channel ('' announces nothing), 6 publish command
-- Answers {first, entries…}
local first = 0
if redis.call('HSET', KEYS[2], ARGV[1], ARGV[2]) == 1 then
  if redis.call('HINCRBY', KEYS[3], ARGV[2], 1) == 1 then first = 1 end
end
redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
if first == 1 and ARGV[5] ~= '' then
  redis.call(ARGV[6], ARGV[5], ARGV[4])
end
return {first, redis.call('HGETALL', KEYS[1])}
