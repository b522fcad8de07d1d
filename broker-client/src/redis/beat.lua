#!lua
-- Refresh a node's lease, by the clock of Redis. KEYS 1 beats, 2 records; ARGV 1 node, 2 record
-- Answers {its beat before or false, now ms, beats, records}
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local before = redis.call('HGET', KEYS[1], ARGV[1])
redis.call('HSET', KEYS[1], ARGV[1], now)
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
return {before, now, redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[2])}
