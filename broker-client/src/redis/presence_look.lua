-- Remember to look at users after a while, or sooner if that was agreed. KEYS 1 looks (user -> due ms); ARGV a user: ms, user
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for index = 1, #ARGV, 2 do redis.call('ZADD', KEYS[1], 'LT', now + ARGV[index], ARGV[index + 1]) end
return 1
