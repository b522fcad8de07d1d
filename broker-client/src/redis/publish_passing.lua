-- Publish on a channel without history, once a key; behind pass.lua. Keys come first: where Redis may not write, nothing is
-- published, and what has no key is published all the same.
-- KEYS 1 pub/sub channel, and 2 idempotency, 3 a second key of it, where there are any
-- ARGV 1 publish command, 2 body; with keys 3 idempotency ms, 4 message id
-- Answers the first one's id when this is a repetition, else false
for number = 2, #KEYS do
  local first = redis.call('GET', KEYS[number])
  if first then return first end
end
for number = 2, #KEYS do redis.call('SET', KEYS[number], ARGV[4], 'PX', ARGV[3]) end
pass(ARGV[1], KEYS[1], ARGV[2])
return false
