#!lua
-- Append and publish in one step. Without flags Redis refuses the whole script when it may not write (OOM,
-- READONLY, NOREPLICAS): nothing is published that history does not hold.
-- KEYS 1 meta: epoch (8), tag (8), "offset size"; 2 history; 3 pub/sub channel; 4 idempotency, where asked for
-- ARGV 1 body, 2 new tag, 3 new epoch, 4 size, 5 age ms, 6 meta's lifetime ms, 7 publish command, 8 message id,
--      9 idempotency ms
-- Answers epoch, tag, "offset"; for a repetition "!", epoch, tag, "offset id" of the first
if KEYS[4] then
  local first = redis.call('GET', KEYS[4])
  if first then return '!' .. first end
end
local meta = redis.call('GET', KEYS[1])
local epoch, previous, offset
if meta then
  epoch = string.sub(meta, 1, 8)
  previous = string.sub(meta, 9, 16)
  offset = tonumber(string.match(meta, '^%d+', 17)) + 1
else
  -- Whatever stream is left belongs to an epoch that nobody knows any more.
  redis.call('UNLINK', KEYS[2])
  epoch, previous, offset = ARGV[3], '--------', 1
end
local number = string.format('%.0f', offset)
local time = redis.call('TIME')
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[4], number .. '-' .. time[1] .. string.sub(1000000 + time[2], 2, 4),
  'd', ARGV[1], 't', ARGV[2], 'p', previous)
redis.call('SET', KEYS[1], epoch .. ARGV[2] .. number .. ' ' .. ARGV[4], 'PX', ARGV[6])
redis.call('PEXPIRE', KEYS[2], ARGV[5])
if offset % 128 == 0 then
  -- Readers skip what is too old; this only gives the memory back, a bounded piece at a time.
  local horizon = time[1] * 1000 + math.floor(time[2] / 1000) - ARGV[5]
  local live
  for _, entry in ipairs(redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 256)) do
    local at, ms = string.match(entry[1], '^(%d+)-(%d+)$')
    live = at
    if tonumber(ms) >= horizon then break end
  end
  if live then redis.call('XTRIM', KEYS[2], 'MINID', live .. '-0') end
end
if KEYS[4] then
  redis.call('SET', KEYS[4], epoch .. ARGV[2] .. number .. ' ' .. ARGV[8], 'PX', ARGV[9])
end
redis.call(ARGV[7], KEYS[3], number .. ' ' .. epoch .. ' ' .. ARGV[2] .. ' ' .. previous .. ' ' .. ARGV[1])
return epoch .. ARGV[2] .. number
