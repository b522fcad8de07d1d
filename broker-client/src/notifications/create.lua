-- Record, outbox entry and (where all keys live on one server) every recipient's index entry: one step.
-- KEYS: record, outbox, then five for each recipient's inbox. ARGV: document, outbox due or "", then the entry.
local n = described(3)
redis.call('HSET', KEYS[1], 'document', ARGV[1], 'purge_at', n.purge_at)
if #KEYS > 2 then redis.call('HSET', KEYS[1], 'indexed', 1) end
redis.call('PEXPIREAT', KEYS[1], n.purge_at)
if ARGV[2] ~= '' then redis.call('ZADD', KEYS[2], ARGV[2], n.id) end
for at = 2, #KEYS - 5, 5 do add(inbox(at), n) end
return 1
