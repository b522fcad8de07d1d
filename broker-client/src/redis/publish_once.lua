-- Publish on a channel without history, once a key.
-- KEYS 1 idempotency; ARGV 1 body, 2 pub/sub channel, 3 idempotency ms, 4 message id, 5 publish command
-- Answers {id, duplicate}
local seen = redis.call('GET', KEYS[1])
if seen then
  return {seen, 1}
end
redis.call('SET', KEYS[1], ARGV[4], 'PX', ARGV[3])
redis.call(ARGV[5], ARGV[2], '- - - - ' .. ARGV[1])
return {ARGV[4], 0}
