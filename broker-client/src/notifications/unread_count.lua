-- KEYS: the inbox. ARGV: now.
local box = inbox(0)
purge(box, ARGV[1])
return redis.call('ZCOUNT', box.unread, '(' .. ARGV[1], '+inf')
