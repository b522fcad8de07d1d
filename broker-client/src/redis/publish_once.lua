#!lua
-- Publish on a channel without history, once a key.
-- KEYS 1 pub/sub channel, 2 idempotency, 3 a second key of it, where there is one
-- ARGV 1 message, 2 idempotency ms, 3 message id, 4 publish command
-- Answers the first one's id when this is a repetition, else false
for number = 2, #KEYS do
  local first = redis.call('GET', KEYS[number])
  if first then return first end
end
for number = 2, #KEYS do redis.call('SET', KEYS[number], ARGV[3], 'PX', ARGV[2]) end
redis.call(ARGV[4], KEYS[1], ARGV[1])
return false
