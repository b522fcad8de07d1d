-- Write again what was lost. KEYS as in revoke.lua; ARGV 1 lifetime ms, 2… until ms, tokens. Answers the version, as a text
for index = 2, #ARGV, 2 do redis.call('ZADD', KEYS[1], 'NX', ARGV[index], ARGV[index + 1]) end
local time = redis.call('TIME')
local before = redis.call('GET', KEYS[2]) or '0'
local after = string.format('%.0f', math.max(tonumber(before) + 1, time[1] * 1000000 + time[2]))
redis.call('SET', KEYS[2], after, 'PX', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return after
