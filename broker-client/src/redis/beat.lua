-- Refresh a node's lease and list the living; claim the dead, each for exactly one sweeper.
-- KEYS 1 nodes (id -> beat ms, space, record); ARGV 1 id, 2 record, 3 lease ms
-- Answers {was known, now ms, {id, beat ms, record…}, {dead ids}}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local known = redis.call('HEXISTS', KEYS[1], ARGV[1])
redis.call('HSET', KEYS[1], ARGV[1], now .. ' ' .. ARGV[2])
local all = redis.call('HGETALL', KEYS[1])
local living, dead = {}, {}
for index = 1, #all, 2 do
  local at, record = string.match(all[index + 1], '^(%d+) (.*)$')
  if now - tonumber(at) > tonumber(ARGV[3]) then
    if redis.call('HDEL', KEYS[1], all[index]) == 1 then dead[#dead + 1] = all[index] end
  else
    living[#living + 1] = all[index]
    living[#living + 1] = at
    living[#living + 1] = record
  end
end
return {known, now, living, dead}
