-- A node holds things (open connections, channels with listeners) or lets them go; told in the same step.
-- KEYS 1 inbound stream, 2 its sequence, 3 what the node holds (thing -> data), 4 counts (thing -> nodes that hold it), where
--      only the first hold and the last release count
-- ARGV 1 'hold' or 'release', 2 event to tell ('' tells nothing), 3 time as text, 4 length of the stream, 5… thing, data of the
--      event
-- Answers how many things changed hands
local changed = 0
for index = 5, #ARGV, 2 do
  local thing, data, news = ARGV[index], ARGV[index + 1], false
  if ARGV[1] == 'hold' then
    if redis.call('HSETNX', KEYS[3], thing, data) == 1 then
      news = not KEYS[4] or redis.call('HINCRBY', KEYS[4], thing, 1) == 1
    end
  elseif redis.call('HDEL', KEYS[3], thing) == 1 then
    news = not KEYS[4] or redis.call('HINCRBY', KEYS[4], thing, -1) <= 0
    if news and KEYS[4] then redis.call('HDEL', KEYS[4], thing) end
  end
  if news then
    changed = changed + 1
    if ARGV[2] ~= '' then tell(KEYS[1], KEYS[2], ARGV[2], ARGV[3], data, ARGV[4]) end
  end
end
return changed
