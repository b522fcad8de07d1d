-- KEYS: the shelf. ARGV: now. Answers all records.
return redis.call('HVALS', all)
