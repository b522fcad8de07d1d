-- Entries that the user has read, or has ("delivered"). KEYS: the inbox. ARGV: now, "read" or "delivered", ids.
-- Answers how many changed, then the ids of those that are the user's.
local box = inbox(0)
purge(box, ARGV[1])
local changed, own = 0, {}
for at = 3, #ARGV do
  local id = ARGV[at]
  local meta = redis.call('HGET', box.meta, id)
  if meta and meta ~= '' then
    own[#own + 1] = id
    local delivered = redis.call('ZREM', box.pending, id)
    if ARGV[2] == 'read' then
      changed = changed + redis.call('ZREM', box.unread, id)
    else
      changed = changed + delivered
    end
  end
end
table.insert(own, 1, changed)
return own
