#!lua
-- Claim a dead node for sweeping, if its beat is still the one seen. A claim is a lease too: a sweeper that dies is
-- followed by another. KEYS 1 beats; ARGV 1 node, 2 beat seen
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
local time = redis.call('TIME')
redis.call('HSET', KEYS[1], ARGV[1], '!' .. string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)))
return 1
