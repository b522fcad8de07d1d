-- Tells an event of a change in the change's own step or, where the stream lives on another server, leaves it on record.
-- KEYS 4 inbound stream and 5 its sequence, or 4 what must be told of the resource ('id kind time data', oldest first)
-- Answers what must be told, at most `count`
local function tell_or_record(kind, time, data, length, id, count)
  if kind == '' or not KEYS[4] then return {} end
  if KEYS[5] then
    tell(KEYS[4], KEYS[5], kind, time, data, length)
    return {}
  end
  redis.call('RPUSH', KEYS[4], id .. ' ' .. kind .. ' ' .. time .. ' ' .. data)
  redis.call('LTRIM', KEYS[4], -length, -1)
  return redis.call('LRANGE', KEYS[4], 0, count - 1)
end
