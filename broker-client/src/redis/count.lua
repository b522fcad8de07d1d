#!lua
-- Count a call in a fixed window that begins with the first. KEYS 1 counter; ARGV 1 window ms
local count = redis.call('INCR', KEYS[1])
if count == 1 then
  redis.call('PEXPIRE', KEYS[1], ARGV[1])
  return {1, tonumber(ARGV[1])}
end
return {count, redis.call('PTTL', KEYS[1])}
