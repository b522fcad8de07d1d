-- One recipient has it. KEYS: record. ARGV: now.
if redis.call('HEXISTS', KEYS[1], 'document') == 0 then return 0 end
return redis.call('HSETNX', KEYS[1], 'delivered_at', ARGV[1])
