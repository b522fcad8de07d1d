-- Give an entry up: keep it among the dead letters, acknowledge it. Once, however often it is asked.
-- KEYS 1 inbound stream, 2 dead letters; ARGV 1 group, 2 id, 3 length of the dead letters, 4… fields of the dead letter
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], '*', unpack(ARGV, 4))
return 1
