-- From now on nobody finds the record; the outbox remembers to take it out of the inboxes.
-- KEYS: record, outbox. ARGV: id, due. Answers the record, flat, or nothing when there is none.
if redis.call('HEXISTS', KEYS[1], 'document') == 0 or redis.call('HEXISTS', KEYS[1], 'gone') == 1 then
  return {}
end
redis.call('HSET', KEYS[1], 'gone', 1)
redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
return redis.call('HGETALL', KEYS[1])
