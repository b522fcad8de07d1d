#!lua
-- Register a connection of a user unless too many live ones are there.
-- KEYS 1 the user's connections (id -> node); ARGV 1 id, 2 node, 3 limit, 4… nodes that count
-- Answers {admitted, other live connections}
local count = 0
local limit = tonumber(ARGV[3])
if limit > 0 then
  local live = {}
  for index = 4, #ARGV do live[ARGV[index]] = true end
  local entries = redis.call('HGETALL', KEYS[1])
  for index = 1, #entries, 2 do
    -- Who polls is no connection (POLLER_PREFIX).
    local counts = entries[index] ~= ARGV[1] and string.sub(entries[index], 1, 5) ~= 'poll:'
    if counts and live[entries[index + 1]] then count = count + 1 end
  end
  if count >= limit then return {0, count} end
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return {1, count}
