-- One page of a user's notifications, newest first. KEYS: the inbox.
-- ARGV: now, as_of or "", offset, limit, status or "", type or "", priority or "", "1" for unread alone.
-- Answers the total, as_of, then the page's ids. All that arrived after as_of is left out.
local box = inbox(0)
local now, offset, limit = tonumber(ARGV[1]), tonumber(ARGV[3]), tonumber(ARGV[4])
local status, kind, priority, unread_only = ARGV[5], ARGV[6], ARGV[7], ARGV[8] == '1'
purge(box, now)
local as_of = ARGV[2]
if as_of == '' then
  as_of = redis.call('ZREVRANGE', box.order, 0, 0, 'WITHSCORES')[2] or '0'
end

if status == '' and kind == '' and priority == '' and not unread_only then
  local ids = redis.call('ZREVRANGEBYSCORE', box.order, as_of, '-inf', 'LIMIT', offset, limit)
  return {redis.call('ZCOUNT', box.order, '-inf', as_of), as_of, unpack(ids)}
end

local function own_status(expires, unread, pending)
  if expires and expires <= now then return 'expired' end
  if not unread then return 'read' end
  return pending and 'pending' or 'delivered'
end

local total, answer = 0, {0, as_of}
local all = redis.call('ZREVRANGEBYSCORE', box.order, as_of, '-inf')
for first = 1, #all, CHUNK do
  local ids = {unpack(all, first, math.min(first + CHUNK - 1, #all))}
  local metas = redis.call('HMGET', box.meta, unpack(ids))
  local unread = redis.call('ZMSCORE', box.unread, unpack(ids))
  local pending = redis.call('ZMSCORE', box.pending, unpack(ids))
  for at, id in ipairs(ids) do
    local expires, its_priority, its_kind = string.match(metas[at] or '', '^(%-?%d*);(%l+);(.*)$')
    local own = own_status(tonumber(expires or ''), unread[at], pending[at])
    if its_kind and (kind == '' or kind == its_kind)
      and (priority == '' or priority == its_priority)
      and (status == '' or status == own)
      and (not unread_only or (unread[at] and own ~= 'expired')) then
      total = total + 1
      if total > offset and total <= offset + limit then answer[#answer + 1] = id end
    end
  end
end
answer[1] = total
return answer
