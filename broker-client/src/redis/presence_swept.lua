-- A dead node's presence is taken back. KEYS 1 claims (as in presence_tend.lua); ARGV 1 node
local time = redis.call('TIME')
redis.call('HSET', KEYS[1], ARGV[1], -(time[1] * 1000 + math.floor(time[2] / 1000)))
return 1
