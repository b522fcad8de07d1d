-- What was to be announced was: it is owed no more. KEYS 1 status (as in presence_settle.lua); ARGV 1 event, space, payload
if redis.call('HGET', KEYS[1], 'o') == ARGV[1] then redis.call('HDEL', KEYS[1], 'o') end
return 1
