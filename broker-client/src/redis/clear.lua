#!lua
-- Forget history and begin a new epoch. KEYS 1 meta, 2 history; ARGV 1 new epoch, 2 epoch lifetime ms
redis.call('UNLINK', KEYS[2])
redis.call('SET', KEYS[1], ARGV[1] .. '--------0 0', 'PX', ARGV[2])
return 1
