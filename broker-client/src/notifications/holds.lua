-- Whether the inbox holds the id. KEYS: the inbox. ARGV: now, id.
local box = inbox(0)
purge(box, ARGV[1])
local meta = redis.call('HGET', box.meta, ARGV[2])
return (meta and meta ~= '') and 1 or 0
