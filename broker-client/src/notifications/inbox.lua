-- One user's inbox: five keys of one slot, KEYS[at + 1] … KEYS[at + 5]. Put before the scripts that use it.
--   order    sorted set: id -> order of arrival, strictly increasing, about Unix milliseconds
--   unread   sorted set: id -> when it stops counting as unread
--   pending  sorted set: id -> order
--   purge    sorted set: id -> when the entry goes
--   meta     hash: id -> "expires;priority;type", or "" for an entry that was taken out: it stays until
--            its purge, so that a repeated fan-in cannot bring it back
local CHUNK = 1000

local function inbox(at)
  return {order = KEYS[at + 1], unread = KEYS[at + 2], pending = KEYS[at + 3],
          purge = KEYS[at + 4], meta = KEYS[at + 5]}
end

local function settle(box, ids)
  redis.call('ZREM', box.unread, unpack(ids))
  redis.call('ZREM', box.pending, unpack(ids))
end

local function drop(box, ids)
  settle(box, ids)
  redis.call('ZREM', box.order, unpack(ids))
  redis.call('ZREM', box.purge, unpack(ids))
  redis.call('HDEL', box.meta, unpack(ids))
end

local function purge(box, now)
  repeat
    local gone = redis.call('ZRANGEBYSCORE', box.purge, '-inf', now, 'LIMIT', 0, CHUNK)
    if #gone > 0 then drop(box, gone) end
  until #gone < CHUNK
end

-- The inbox goes by itself with the last of its entries.
local function keep(box)
  local last = redis.call('ZREVRANGE', box.purge, 0, 0, 'WITHSCORES')[2]
  if not last then return end
  for _, key in pairs(box) do redis.call('PEXPIREAT', key, last) end
end

-- Adds an entry once, however often it is asked.
local function add(box, n)
  if redis.call('HSETNX', box.meta, n.id, n.meta) == 0 then return end
  local top = redis.call('ZREVRANGE', box.order, 0, 0, 'WITHSCORES')[2]
  local order = n.created
  if top and tonumber(top) >= order then order = tonumber(top) + 1 end
  redis.call('ZADD', box.order, order, n.id)
  redis.call('ZADD', box.purge, n.purge_at, n.id)
  if n.unread_until > n.now then
    redis.call('ZADD', box.unread, n.unread_until, n.id)
    redis.call('ZADD', box.pending, order, n.id)
  end
  local over = redis.call('ZCARD', box.order) - n.entries_max
  if over > 0 then
    drop(box, redis.call('ZRANGE', box.order, 0, math.min(over, CHUNK) - 1))
  end
  keep(box)
end

-- The entry as ARGV[first …] describes it.
local function described(first)
  return {id = ARGV[first], now = tonumber(ARGV[first + 1]), created = tonumber(ARGV[first + 2]),
          unread_until = tonumber(ARGV[first + 3]), purge_at = tonumber(ARGV[first + 4]),
          entries_max = tonumber(ARGV[first + 5]), meta = ARGV[first + 6]}
end
