-- Ids that count as unread. KEYS: the inbox. ARGV: now.
local box = inbox(0)
purge(box, ARGV[1])
return redis.call('ZRANGEBYSCORE', box.unread, '(' .. ARGV[1], '+inf')
