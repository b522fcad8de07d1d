-- Register a connection of a user unless too many live ones are there.
-- KEYS 1 the user's connections (id -> node); ARGV 1 id, 2 node, 3 limit, 4 expiry ms, 5… nodes that count
-- Answers {admitted, live}
local live = {}
for index = 5, #ARGV do live[ARGV[index]] = true end
local entries = redis.call('HGETALL', KEYS[1])
local count = 0
for index = 1, #entries, 2 do
  if entries[index] ~= ARGV[1] and live[entries[index + 1]] then count = count + 1 end
end
local limit = tonumber(ARGV[3])
if limit > 0 and count >= limit then
  return {0, count}
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return {1, count + 1}
