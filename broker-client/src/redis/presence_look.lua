-- Remember to look at users after a while, or sooner if that was agreed. KEYS 1 looks (user -> due ms); ARGV 1 ms, 2… users
local time = redis.call('TIME')
local due = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[1])
for index = 2, #ARGV do redis.call('ZADD', KEYS[1], 'LT', due, ARGV[index]) end
return 1
