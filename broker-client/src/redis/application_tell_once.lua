-- Tell events in order, each once by its id, whoever tells it.
-- KEYS 1 inbound stream, 2 its sequence, 3 ids told lately (id -> ms)
-- ARGV 1 length of the stream, of which as many ids are known, 2 ms after which they are not, 3… events: 'id kind time data'
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local told = 0
for index = 3, #ARGV do
  local id, kind, at, data = string.match(ARGV[index], '^(%S+) (%S+) (%S+) (.*)$')
  if id and not redis.call('ZSCORE', KEYS[3], id) then
    tell(KEYS[1], KEYS[2], kind, at, data, ARGV[1])
    redis.call('ZADD', KEYS[3], now, id)
    told = told + 1
  end
end
redis.call('ZREMRANGEBYRANK', KEYS[3], 0, -1 - ARGV[1])
redis.call('PEXPIRE', KEYS[3], ARGV[2])
return told
