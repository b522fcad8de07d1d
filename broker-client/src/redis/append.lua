#!lua
-- Append and publish in one step: the first part of publish.lua and publish_many.lua. Without flags Redis refuses the whole
-- script when it may not write (OOM, READONLY, NOREPLICAS): nothing is published that history does not hold.
-- Keys: meta ("epoch" (8), "tag" (8), "offset size"), history, pub/sub channel, and `once` where a key of idempotency was given,
-- `also` where there is a second.
-- Answers epoch, tag, "offset"; for a repetition "!", epoch, tag, "offset id" of the first
-- Local names and few string operations: Lua itself costs more here than the calls.
local call = redis.call
local function append(meta_key, history, heard, once, body, tag, fresh, size, age, lifetime, verb, id, window, time, also)
  if once then
    local first = call('GET', once) or also and call('GET', also)
    if first then return '!' .. first end
  end
  local meta = call('GET', meta_key)
  local epoch, previous, offset
  if meta then
    epoch = string.sub(meta, 1, 8)
    previous = string.sub(meta, 9, 16)
    offset = string.sub(meta, 17, string.find(meta, ' ', 18, true) - 1) + 1
  else
    -- Whatever stream is left belongs to an epoch that nobody knows any more.
    call('UNLINK', history)
    epoch, previous, offset = fresh, '--------', 1
  end
  -- Beyond 14 digits Lua would write an exponent.
  local number = offset < 1e14 and offset .. '' or string.format('%.0f', offset)
  call('XADD', history, 'MAXLEN', '~', size, number .. '-' .. time[1] .. string.sub(1000000 + time[2], 2, 4),
    'd', body, 't', tag, 'p', previous)
  local position = epoch .. tag .. number
  call('SET', meta_key, position .. ' ' .. size, 'PX', lifetime)
  call('PEXPIRE', history, age)
  if offset % 128 == 0 then
    -- Readers skip what is too old; this only gives the memory back, a bounded piece at a time.
    local horizon = time[1] * 1000 + math.floor(time[2] / 1000) - age
    local function aged(entry) return tonumber(string.match(entry[1], '-(%d+)$')) < horizon end
    local oldest = call('XRANGE', history, '-', '+', 'COUNT', 1)[1]
    if oldest and aged(oldest) then
      for _, entry in ipairs(call('XRANGE', history, '-', '+', 'COUNT', 256)) do
        oldest = entry
        if not aged(entry) then break end
      end
      call('XTRIM', history, 'MINID', string.match(oldest[1], '^%d+') .. '-0')
    end
  end
  if once then call('SET', once, position .. ' ' .. id, 'PX', window) end
  if also then call('SET', also, position .. ' ' .. id, 'PX', window) end
  call(verb, heard, number .. ' ' .. epoch .. ' ' .. tag .. ' ' .. previous .. ' ' .. body)
  return position
end
