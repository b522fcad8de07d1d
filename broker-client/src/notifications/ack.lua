-- The fan-out is done. KEYS: record, outbox. ARGV: id. A deletion in the outbox stays.
if redis.call('HEXISTS', KEYS[1], 'gone') == 1 then return 0 end
return redis.call('ZREM', KEYS[2], ARGV[1])
