-- One user's subscriptions: KEYS[1] all (hash: id -> record as JSON), KEYS[2] ends (sorted set: id -> when it is
-- purged, +inf while it has no end). Put before the scripts that use it. ARGV[1] is always now.
local all, ends, now = KEYS[1], KEYS[2], ARGV[1]

local function drop(ids)
  if #ids == 0 then return end
  redis.call('HDEL', all, unpack(ids))
  redis.call('ZREM', ends, unpack(ids))
end

-- What is past its time goes whenever the shelf is touched.
drop(redis.call('ZRANGEBYSCORE', ends, '-inf', now, 'LIMIT', 0, 5000))

-- The shelf goes by itself when everything on it has an end.
local function keep()
  local last = redis.call('ZREVRANGE', ends, 0, 0, 'WITHSCORES')[2]
  for _, key in ipairs({all, ends}) do
    if last == 'inf' then
      redis.call('PERSIST', key)
    elseif last then
      redis.call('PEXPIREAT', key, last)
    end
  end
end

-- Puts a record and the way to it (KEYS[3]: id -> user).
local function put(id, user, record, purge_at)
  redis.call('HSET', all, id, record)
  redis.call('ZADD', ends, purge_at, id)
  redis.call('SET', KEYS[3], user)
  if purge_at ~= '+inf' then redis.call('PEXPIREAT', KEYS[3], purge_at) end
  keep()
end
