-- Find the page of an id, and the page that answered a question.
-- KEYS 1 pages, 2 state; ARGV 1 id, 2 question or ''
-- Answers {page or '', page or ''}; the caller looks whether the first one holds the id
local origin = redis.call('ZRANGEBYSCORE', KEYS[1], ARGV[1], '+inf', 'LIMIT', 0, 1)[1]
local answered = false
if ARGV[2] ~= '' then
  local last = redis.call('HGET', KEYS[2], 'q' .. ARGV[2])
  answered = last and redis.call('ZRANGEBYSCORE', KEYS[1], last, last)[1]
end
return {origin or '', answered or ''}
