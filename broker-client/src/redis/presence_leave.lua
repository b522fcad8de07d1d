-- A holder lets a user go; announced in the same step when it was the last.
-- KEYS 1 entries, 2 holders, 3 counts (as in presence_join.lua), 4 and 5 as there
-- ARGV 1 holder ('' for all of them), 2 user, 3 last seen ms, 4 message without its payload, 5 pub/sub channel, 6 publish command,
--      7 event to tell ('' tells nothing), 8 time as text, 9 the event's data before the member, 10 length of the stream,
--      11 the event's id, 12 how much of what must be told is answered
-- Answers {1 when they are gone now, what must be told}
local user = ARGV[2]
if ARGV[1] == '' then
  local holders = redis.call('HGETALL', KEYS[2])
  for index = 1, #holders, 2 do
    if holders[index + 1] == user then redis.call('HDEL', KEYS[2], holders[index]) end
  end
else
  if redis.call('HDEL', KEYS[2], ARGV[1]) == 0 then return {0, {}} end
  local left = redis.call('HINCRBY', KEYS[3], user, -1)
  if left > 0 then
    -- Only a backend vouches for the entry now: it is as old as its last writing.
    if left == 1 and redis.call('HEXISTS', KEYS[2], '!' .. user) == 1 then
      local entry = redis.call('HGET', KEYS[1], user)
      local json = entry and string.match(entry, '^p?%d+ (.*)$')
      if json then redis.call('HSET', KEYS[1], user, 'p' .. ARGV[3] .. ' ' .. json) end
    end
    return {0, {}}
  end
end
redis.call('HDEL', KEYS[3], user)
local entry = redis.call('HGET', KEYS[1], user)
if not entry then return {0, {}} end
redis.call('HDEL', KEYS[1], user)
local json = string.match(entry, '^p?%d+ (.*)$') or '{}'
local member = string.sub(json, 1, -2) .. ',"lastSeen":' .. ARGV[3] .. '}'
pass(ARGV[6], ARGV[5], ARGV[4] .. member)
return {1, tell_or_record(ARGV[7], ARGV[8], ARGV[9] .. member .. '}', ARGV[10], ARGV[11], ARGV[12])}
