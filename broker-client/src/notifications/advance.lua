-- So many recipients are served; the claim goes on. KEYS: record, outbox. ARGV: id, lease end, published.
-- Answers 0 when there is nothing left to do: it was acknowledged, deleted, or is gone.
if redis.call('HEXISTS', KEYS[1], 'document') == 0 or redis.call('HEXISTS', KEYS[1], 'gone') == 1
  or not redis.call('ZSCORE', KEYS[2], ARGV[1]) then
  return 0
end
redis.call('ZADD', KEYS[2], 'XX', ARGV[2], ARGV[1])
redis.call('HSET', KEYS[1], 'published', ARGV[3])
return 1
