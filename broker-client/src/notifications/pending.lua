-- Oldest ids that no connection or poll of the user has yet. KEYS: the inbox. ARGV: now, limit.
local box = inbox(0)
local now, limit = tonumber(ARGV[1]), tonumber(ARGV[2])
purge(box, now)
local found = {}
while #found < limit do
  local ids = redis.call('ZRANGE', box.pending, #found, #found + math.min(limit - #found, CHUNK) - 1)
  if #ids == 0 then break end
  local metas = redis.call('HMGET', box.meta, unpack(ids))
  for at, id in ipairs(ids) do
    local expires = metas[at] and tonumber(string.match(metas[at], '^(%-?%d*);') or '')
    -- What expired while it waited will never be sent: its place in the queue goes.
    if not metas[at] or (expires and expires <= now) then
      redis.call('ZREM', box.pending, id)
    else
      found[#found + 1] = id
    end
  end
end
return found
