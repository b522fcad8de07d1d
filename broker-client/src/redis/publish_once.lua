#!lua
-- Publish on a channel without history, once a key.
-- KEYS 1 idempotency, 2 pub/sub channel; ARGV 1 message, 2 idempotency ms, 3 message id, 4 publish command
-- Answers the first one's id when this is a repetition, else false
local first = redis.call('SET', KEYS[1], ARGV[3], 'NX', 'GET', 'PX', ARGV[2])
if first then return first end
redis.call(ARGV[4], KEYS[2], ARGV[1])
return false
