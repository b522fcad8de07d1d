-- KEYS: the shelf. ARGV: now, id. Answers the record or nil.
return redis.call('HGET', all, ARGV[2])
