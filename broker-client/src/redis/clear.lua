#!lua
-- Forget history and begin a new epoch, and tell who hears the channel.
-- KEYS 1 meta, 2 history, 3 pub/sub channel; ARGV 1 new epoch, 2 epoch lifetime ms, 3 publish command, 4 message
redis.call('UNLINK', KEYS[2])
redis.call('SET', KEYS[1], ARGV[1] .. '--------0 0', 'PX', ARGV[2])
redis.call(ARGV[3], KEYS[3], ARGV[4])
return 1
