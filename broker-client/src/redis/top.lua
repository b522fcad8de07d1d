#!lua
-- Begin epochs where there are none. KEYS a channel: 1 meta, 2 history; ARGV 1 epoch lifetime ms, then a new epoch a channel
-- Answers the metas
local metas = {}
for channel = 1, #KEYS / 2 do
  local meta = redis.call('GET', KEYS[2 * channel - 1])
  if not meta then
    redis.call('UNLINK', KEYS[2 * channel])
    meta = ARGV[1 + channel] .. '--------0 0'
    redis.call('SET', KEYS[2 * channel - 1], meta, 'PX', ARGV[1])
  end
  metas[channel] = meta
end
return metas
