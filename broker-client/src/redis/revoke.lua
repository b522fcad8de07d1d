-- Revoke tokens, or take that back; forget what is over. Versions are microseconds, so that none comes twice whatever is lost.
-- KEYS 1 revocations (tokens -> until ms), 2 version; ARGV 1 tokens, 2 until ms, 3 lifetime ms
-- Answers {version before, version now}, as texts
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if tonumber(ARGV[2]) > now then
  redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
else
  redis.call('ZREM', KEYS[1], ARGV[1])
end
local before = redis.call('GET', KEYS[2]) or '0'
local after = string.format('%.0f', math.max(tonumber(before) + 1, time[1] * 1000000 + time[2]))
redis.call('SET', KEYS[2], after, 'PX', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return {before, after}
