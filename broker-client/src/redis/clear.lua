-- Forget history and begin a new epoch. KEYS 1 meta, 2 history; ARGV 1 new epoch, 2 epoch lifetime ms
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[1], 'e', ARGV[1], 'o', 0, 't', '--------')
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
