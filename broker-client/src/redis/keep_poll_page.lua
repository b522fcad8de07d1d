-- Keep a page of a user's poll answers under fresh ids, or answer the page that the question has already.
-- KEYS 1 pages (sorted by last id: "first count question body"), 2 state (n: last id, b: bytes, q…: question -> last id)
-- ARGV 1 question or '', 2 count, 3 body, 4 pages at most, 5 bytes at most, 6 lifetime ms, 7 id that was asked with
-- Answers the page
local question, count = ARGV[1], tonumber(ARGV[2])
if question ~= '' then
  local last = redis.call('HGET', KEYS[2], 'q' .. question)
  local page = last and redis.call('ZRANGEBYSCORE', KEYS[1], last, last)[1]
  if page then return page end
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local first = math.max(tonumber(redis.call('HGET', KEYS[2], 'n') or '0') + 1, ARGV[7] + 1, now)
local last = string.format('%.0f', first + count - 1)
local page = string.format('%.0f', first) .. ' ' .. count .. ' ' .. question .. ' ' .. ARGV[3]
redis.call('ZADD', KEYS[1], last, page)
redis.call('HSET', KEYS[2], 'n', last)
if question ~= '' then redis.call('HSET', KEYS[2], 'q' .. question, last) end
local bytes = redis.call('HINCRBY', KEYS[2], 'b', #page)
local pages = redis.call('ZCARD', KEYS[1])
while pages > 1 and (pages > tonumber(ARGV[4]) or bytes > tonumber(ARGV[5])) do
  local old = redis.call('ZPOPMIN', KEYS[1])[1]
  local asked = string.match(old, '^%d+ %d+ ([^ ]*) ')
  if asked and asked ~= '' then redis.call('HDEL', KEYS[2], 'q' .. asked) end
  bytes = redis.call('HINCRBY', KEYS[2], 'b', -#old)
  pages = pages - 1
end
redis.call('PEXPIRE', KEYS[1], ARGV[6])
redis.call('PEXPIRE', KEYS[2], ARGV[6])
return page
