#!lua
-- Append and publish in one step. Without flags Redis refuses the whole script when it may not write (OOM,
-- READONLY, NOREPLICAS): nothing is published that history does not hold.
-- KEYS 1 meta: epoch (8), tag (8), "offset size"; 2 history; 3 pub/sub channel; 4 idempotency, where asked for
-- ARGV 1 body, 2 new tag, 3 new epoch, 4 size, 5 age ms, 6 meta's lifetime ms, 7 publish command, 8 message id,
--      9 idempotency ms
-- Answers epoch, tag, "offset"; for a repetition "!", epoch, tag, "offset id" of the first
-- Local names and few string operations: Lua itself costs more here than the calls.
local call, keys, argv = redis.call, KEYS, ARGV
local body, tag, once = argv[1], argv[2], keys[4]
if once then
  local first = call('GET', once)
  if first then return '!' .. first end
end
local meta = call('GET', keys[1])
local epoch, previous, offset
if meta then
  epoch = string.sub(meta, 1, 8)
  previous = string.sub(meta, 9, 16)
  offset = string.sub(meta, 17, string.find(meta, ' ', 18, true) - 1) + 1
else
  -- Whatever stream is left belongs to an epoch that nobody knows any more.
  call('UNLINK', keys[2])
  epoch, previous, offset = argv[3], '--------', 1
end
-- Beyond 14 digits Lua would write an exponent.
local number = offset < 1e14 and offset .. '' or string.format('%.0f', offset)
local time = call('TIME')
call('XADD', keys[2], 'MAXLEN', '~', argv[4], number .. '-' .. time[1] .. string.sub(1000000 + time[2], 2, 4),
  'd', body, 't', tag, 'p', previous)
local position = epoch .. tag .. number
call('SET', keys[1], position .. ' ' .. argv[4], 'PX', argv[6])
call('PEXPIRE', keys[2], argv[5])
if offset % 128 == 0 then
  -- Readers skip what is too old; this only gives the memory back, a bounded piece at a time.
  local horizon = time[1] * 1000 + math.floor(time[2] / 1000) - argv[5]
  local function aged(entry) return tonumber(string.match(entry[1], '-(%d+)$')) < horizon end
  local oldest = call('XRANGE', keys[2], '-', '+', 'COUNT', 1)[1]
  if oldest and aged(oldest) then
    for _, entry in ipairs(call('XRANGE', keys[2], '-', '+', 'COUNT', 256)) do
      oldest = entry
      if not aged(entry) then break end
    end
    call('XTRIM', keys[2], 'MINID', string.match(oldest[1], '^%d+') .. '-0')
  end
end
if once then call('SET', once, position .. ' ' .. argv[8], 'PX', argv[9]) end
call(argv[7], keys[3], number .. ' ' .. epoch .. ' ' .. tag .. ' ' .. previous .. ' ' .. body)
return position
