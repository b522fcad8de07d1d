-- Hand out entries to a consumer of a group, which is made where there is none and begins with the oldest entry.
-- KEYS 1 inbound stream; ARGV 1 group, 2 consumer, 3 limit, 4 'new', 'own' or 'abandoned', 5 id after which (own), idle ms (abandoned)
-- Answers entries {id, fields or false, times handed out}
local key, group, consumer, limit = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])

local function read()
  if ARGV[4] == 'abandoned' then
    local found, cursor = {}, '0-0'
    -- Bounded: what is left comes next time.
    for _ = 1, 10 do
      local answer = redis.pcall('XAUTOCLAIM', key, group, consumer, ARGV[5], cursor, 'COUNT', limit - #found)
      if answer.err then return answer end
      for _, entry in ipairs(answer[2]) do found[#found + 1] = entry end
      cursor = answer[1]
      if cursor == '0-0' or #found >= limit then break end
    end
    return found
  end
  local from = ARGV[4] == 'own' and ARGV[5] or '>'
  local answer = redis.pcall('XREADGROUP', 'GROUP', group, consumer, 'COUNT', limit, 'STREAMS', key, from)
  if not answer or answer.err then return answer or {} end
  return answer[1] and answer[1][2] or {}
end

local entries = read()
if entries.err then
  if string.sub(entries.err, 1, 7) ~= 'NOGROUP' then return entries end
  local made = redis.pcall('XGROUP', 'CREATE', key, group, '0', 'MKSTREAM')
  if made.err and string.sub(made.err, 1, 9) ~= 'BUSYGROUP' then return made end
  entries = read()
  if entries.err then return entries end
end

local handed = {}
for _, entry in ipairs(entries) do
  local times = 1
  if ARGV[4] ~= 'new' then
    local pending = redis.call('XPENDING', key, group, entry[1], entry[1], 1)[1]
    times = pending and pending[4] or 1
  end
  handed[#handed + 1] = {entry[1], entry[2], times}
end
return handed
