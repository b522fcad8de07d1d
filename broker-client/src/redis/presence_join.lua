-- A holder puts a user at a resource; announced in the same step when they were not there.
-- KEYS 1 entries (user -> 'ms json', 'pms json' when a backend's), 2 holders (holder -> user), 3 counts (user -> holders)
--      4 and 5 as in presence_record.lua
-- ARGV 1 holder, 2 user, 3 entry, 4 message, 5 pub/sub channel ('' announces nothing), 6 publish command,
--      7 event to tell ('' tells nothing), 8 time as text, 9 the event's data, 10 length of the stream, 11 the event's id,
--      12 how much of what must be told is answered
-- Answers {first, entries, what must be told}
local first, recorded = 0, {}
if redis.call('HSET', KEYS[2], ARGV[1], ARGV[2]) == 1 then
  if redis.call('HINCRBY', KEYS[3], ARGV[2], 1) == 1 then first = 1 end
end
redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
if first == 1 and ARGV[5] ~= '' then
  pass(ARGV[6], ARGV[5], ARGV[4])
  recorded = tell_or_record(ARGV[7], ARGV[8], ARGV[9], ARGV[10], ARGV[11], ARGV[12])
end
return {first, redis.call('HGETALL', KEYS[1]), recorded}
