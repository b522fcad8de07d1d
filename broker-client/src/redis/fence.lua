#!lua
-- Begin a new epoch where history lost a position that somebody knows; what is there stays. Told to who hears the channel.
-- KEYS 1 meta (as in publish.lua), 2 history, 3 pub/sub channel
-- ARGV 1 known epoch, 2 known offset, 3 known tag, 4 new epoch, 5 publish command, 6 message
-- Answers 1 when it was lost, else 0: it is there, was trimmed, or belongs to another epoch
local meta = redis.call('GET', KEYS[1])
if not meta or string.sub(meta, 1, 8) ~= ARGV[1] then return 0 end
local top, offset = tonumber(string.match(meta, '^(%d+) ', 17)), tonumber(ARGV[2])
local tag = ''
if offset == top then
  tag = string.sub(meta, 9, 16)
elseif offset < top then
  -- The successor knows its predecessor.
  local place = string.format('%.0f', offset + 1)
  local successor = redis.call('XRANGE', KEYS[2], place, place, 'COUNT', 1)[1]
  if not successor then return 0 end
  tag = successor[2][6]
end
if tag == ARGV[3] then return 0 end
redis.call('SET', KEYS[1], ARGV[4] .. string.sub(meta, 9), 'KEEPTTL')
redis.call(ARGV[5], KEYS[3], ARGV[6])
return 1
