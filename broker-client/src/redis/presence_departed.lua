-- Users leave: note when they were seen last, and until when they are not offline. That they are looked at then was agreed
-- before. KEYS a user: 1 status (see status.lua), 2 their connections (id -> node)
-- ARGV 1 lifetime ms, 2 caller's clock ms, 3 the same as text; a user: 1 delay ms, 2 connection that is taken back, or ''
local call, keys, argv = redis.call, KEYS, ARGV
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for user = 1, #keys / 2 do
  local status, delay, connection = keys[2 * user - 1], argv[2 + 2 * user], argv[3 + 2 * user]
  call('HSET', status, 'l', argv[2], 't', argv[3], 'g', now + delay)
  call('PEXPIRE', status, argv[1])
  if connection ~= '' then call('HDEL', keys[2 * user], connection) end
end
return 1
