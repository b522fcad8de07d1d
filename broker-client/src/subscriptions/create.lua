-- A new subscription, unless the user has too many that have not ended.
-- KEYS: the shelf, way. ARGV: now, id, user, record, purge_at, limit, how long ended ones are kept.
-- Answers 1, or 0 when there are too many.
local limit = tonumber(ARGV[6])
local living = redis.call('ZCOUNT', ends, '(' .. string.format('%.0f', now + ARGV[7]), '+inf')
if living >= limit then return 0 end
-- Ended ones are bounded too: the oldest give way.
local over = redis.call('ZCARD', ends) - 2 * limit + 1
if over > 0 then drop(redis.call('ZRANGE', ends, 0, math.min(over, 5000) - 1)) end
put(ARGV[2], ARGV[3], ARGV[4], ARGV[5])
return 1
