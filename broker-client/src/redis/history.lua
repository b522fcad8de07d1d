#!lua flags=no-writes
-- Read a page of history, also while Redis refuses writes.
-- KEYS 1 meta, 2 history; ARGV 1 'after' or 'last', 2 offset, 3 limit, 4 age ms
-- Answers false where there is no epoch, else {meta, tag at the offset or '', entries…}
local meta = redis.call('GET', KEYS[1])
if not meta then return false end
local top, size = string.match(meta, '^(%d+) (%d+)', 17)
top, size = tonumber(top), tonumber(size)
local limit = tonumber(ARGV[3])
local time = redis.call('TIME')
local horizon = time[1] * 1000 + math.floor(time[2] / 1000) - ARGV[4]

-- The first entry from this offset on: its offset and whether it is too old. Offsets have no holes.
local function look(offset)
  local entry = redis.call('XRANGE', KEYS[2], string.format('%.0f', offset), '+', 'COUNT', 1)[1]
  if not entry then return nil end
  local at, ms = string.match(entry[1], '^(%d+)-(%d+)$')
  return tonumber(at), tonumber(ms) < horizon
end

-- The oldest entry that may be seen: not beyond the size (trimming is lazy), not too old.
local first, old = look(math.max(top - size, 0) + 1)
if first and old then
  local aged, young = first, top + 1
  while young - aged > 1 do
    local middle = math.floor((aged + young) / 2)
    local _, too_old = look(middle)
    if too_old then aged = middle else young = middle end
  end
  first = young
end
if not first or first > top then first = top + 1 end

local function entries(from, to, count)
  return redis.call('XRANGE', KEYS[2], string.format('%.0f', from), string.format('%.0f', to), 'COUNT', count)
end

local tag, start = '', nil
if ARGV[1] == 'last' then
  start = math.max(first, top - limit + 1)
else
  local offset = tonumber(ARGV[2])
  if offset == top then
    tag = string.sub(meta, 9, 16)
  elseif offset < top and offset + 1 >= first then
    -- The successor knows its predecessor.
    local successor = entries(offset + 1, top, 1)[1]
    if successor then tag = successor[2][6] end
  end
  start = math.max(first, offset + 1)
end
if limit == 0 or start > top then return {meta, tag} end
local page = entries(start, top, limit)
table.insert(page, 1, tag)
table.insert(page, 1, meta)
return page
