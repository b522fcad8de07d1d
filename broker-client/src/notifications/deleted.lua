-- All inboxes are done with it. KEYS: record, outbox. ARGV: id.
redis.call('DEL', KEYS[1])
return redis.call('ZREM', KEYS[2], ARGV[1])
