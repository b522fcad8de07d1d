-- Append and publish in one step. Nothing is published that history does not hold.
-- KEYS 1 meta, 2 history, 3 idempotency (or meta again when not asked for)
-- ARGV 1 body, 2 new tag, 3 new epoch, 4 size, 5 age ms, 6 now ms, 7 pub/sub channel, 8 idempotency ms (0: not
--      asked), 9 message id, 10 publish command, 11 epoch lifetime ms
-- Answers {offset, epoch, tag, id, duplicate}
local meta = redis.call('HMGET', KEYS[1], 'e', 'o', 't')
if ARGV[8] ~= '0' then
  local seen = redis.call('GET', KEYS[3])
  if seen then
    local first = cjson.decode(seen)
    return {first[1], first[2], first[3], first[4], 1}
  end
end
local epoch, offset, previous = meta[1], tonumber(meta[2]), meta[3]
if not epoch then
  epoch, offset, previous = ARGV[3], 0, '--------'
end
offset = offset + 1
redis.call('XADD', KEYS[2], 'MAXLEN', ARGV[4], offset .. '-' .. ARGV[6], 'd', ARGV[1], 't', ARGV[2], 'p', previous)
redis.call('HSET', KEYS[1], 'e', epoch, 'o', offset, 't', ARGV[2])
if offset % 64 == 1 then
  redis.call('PEXPIRE', KEYS[1], ARGV[11])
  -- Entries carry their time in the id: trim what is too old from the head, a bounded number at once.
  local horizon = tonumber(ARGV[6]) - tonumber(ARGV[5])
  for _, entry in ipairs(redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 200)) do
    local at = tonumber(string.match(entry[1], '-(%d+)$'))
    if at >= horizon then break end
    redis.call('XDEL', KEYS[2], entry[1])
  end
end
redis.call('PEXPIRE', KEYS[2], ARGV[5])
if ARGV[8] ~= '0' then
  redis.call('SET', KEYS[3], cjson.encode({offset, epoch, ARGV[2], ARGV[9]}), 'PX', ARGV[8])
end
redis.call(ARGV[10], ARGV[7], offset .. ' ' .. epoch .. ' ' .. ARGV[2] .. ' ' .. previous .. ' ' .. ARGV[1])
return {offset, epoch, ARGV[2], ARGV[9], 0}
