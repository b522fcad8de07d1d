-- Takes an entry out and remembers it until its purge. KEYS: the inbox. ARGV: now, id, purge_at.
-- Answers 1 when it was there.
local box = inbox(0)
purge(box, ARGV[1])
local id = ARGV[2]
settle(box, {id})
local was = redis.call('ZREM', box.order, id)
local purge_at = ARGV[3]
if purge_at == '' then
  if was == 0 then return 0 end
  purge_at = redis.call('ZSCORE', box.purge, id)
end
redis.call('ZADD', box.purge, purge_at, id)
redis.call('HSET', box.meta, id, '')
-- The mark must not end before its purpose does, nor outlive it.
keep(box)
return was
