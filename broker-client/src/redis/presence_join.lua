-- A holder puts a user at a resource; announced in the same step when they were not there.
-- KEYS 1 entries (user -> 'ms json', 'pms json' when a backend's), 2 holders (holder -> user), 3 counts (user -> holders)
--      4 inbound stream and 5 its sequence, where they live on this server
-- ARGV 1 holder, 2 user, 3 entry, 4 message, 5 pub/sub channel ('' announces nothing), 6 publish command,
--      7 event to tell ('' tells nothing), 8 time as text, 9 the event's data, 10 length of the stream
-- Answers {first, entries…}
local first = 0
if redis.call('HSET', KEYS[2], ARGV[1], ARGV[2]) == 1 then
  if redis.call('HINCRBY', KEYS[3], ARGV[2], 1) == 1 then first = 1 end
end
redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
if first == 1 and ARGV[5] ~= '' then
  redis.call(ARGV[6], ARGV[5], ARGV[4])
  if KEYS[4] and ARGV[7] ~= '' then tell(KEYS[4], KEYS[5], ARGV[7], ARGV[8], ARGV[9], ARGV[10]) end
end
return {first, redis.call('HGETALL', KEYS[1])}
