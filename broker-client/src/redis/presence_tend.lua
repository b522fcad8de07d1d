-- Refresh a node's presence lease; hand out what is due, each to one node for the time of a claim.
-- KEYS 1 leases (node -> beat ms), 2 claims (node -> ms until another may sweep it; negative: swept at),
--      3 looks (user -> due ms), 4 ends of backends' entries ('channel user' -> due ms)
-- ARGV 1 node, 2 lease ms, 3 claim ms, 4 most items, 5 ms until swept nodes are forgotten,
--      6 number of done looks, then user and due of each, then the same for ends
-- Answers {known, swept, dead nodes, looks with their due, ends with their due}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local claim = now + tonumber(ARGV[3])
local index = 7
local function done(key, count)
  for _ = 1, count do
    -- Agreed anew since it was handed out: it stays.
    if redis.call('ZSCORE', key, ARGV[index]) == ARGV[index + 1] then redis.call('ZREM', key, ARGV[index]) end
    index = index + 2
  end
end
done(KEYS[3], tonumber(ARGV[6]))
local ends = tonumber(ARGV[index])
index = index + 1
done(KEYS[4], ends)

local known, swept = 1, 0
local claimed = redis.call('HGET', KEYS[2], ARGV[1])
if claimed and tonumber(claimed) > 0 then
  -- A survivor is taking back what this node held: wait until that is over.
  known = 1
else
  if claimed then
    redis.call('HDEL', KEYS[2], ARGV[1])
    swept = 1
  end
  if redis.call('HSET', KEYS[1], ARGV[1], now) == 1 then known = 0 end
end

local dead = {}
local leases = redis.call('HGETALL', KEYS[1])
for place = 1, #leases, 2 do
  if now - tonumber(leases[place + 1]) > tonumber(ARGV[2]) then
    redis.call('HDEL', KEYS[1], leases[place])
    redis.call('HSET', KEYS[2], leases[place], claim)
    dead[#dead + 1] = leases[place]
  end
end
local claims = redis.call('HGETALL', KEYS[2])
for place = 1, #claims, 2 do
  local at = tonumber(claims[place + 1])
  if at > 0 and at < now then
    redis.call('HSET', KEYS[2], claims[place], claim)
    dead[#dead + 1] = claims[place]
  elseif at < 0 and now + at > tonumber(ARGV[5]) then
    redis.call('HDEL', KEYS[2], claims[place])
  end
end

local function due(key)
  local items = redis.call('ZRANGEBYSCORE', key, '-inf', now, 'LIMIT', 0, ARGV[4])
  local handed = {}
  for _, item in ipairs(items) do
    redis.call('ZADD', key, claim, item)
    handed[#handed + 1] = item
    handed[#handed + 1] = redis.call('ZSCORE', key, item)
  end
  return handed
end
return {known, swept, dead, due(KEYS[3]), due(KEYS[4])}
