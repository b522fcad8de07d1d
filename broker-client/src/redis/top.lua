#!lua
-- Begin an epoch where there is none. KEYS 1 meta, 2 history; ARGV 1 new epoch, 2 epoch lifetime ms
-- Answers the meta
local meta = redis.call('GET', KEYS[1])
if not meta then
  redis.call('UNLINK', KEYS[2])
  meta = ARGV[1] .. '--------0 0'
  redis.call('SET', KEYS[1], meta, 'PX', ARGV[2])
end
return meta
