-- Keep a page of a user's poll answers under fresh ids, or answer the page that the question has already.
-- KEYS 1 pages
-- ARGV 1 question or '', 2 id that was asked with, 3 count, 4 body, 5 pages at most, 6 bytes at most, 7 lifetime ms, 8 now ms
-- Answers the page
local after, last, before = tonumber(ARGV[2]), 0, 0
local newest = redis.call('LINDEX', KEYS[1], -1)
if newest then
  local first, count, sum = string.match(newest, '^(%d+) (%d+) (%d+) ')
  last, before = first + count - 1, sum + #newest
  -- Mostly the question was asked with the newest id: nothing can have answered it.
  local page = last > after and answered(KEYS[1], after, ARGV[1])
  if page then return page end
end
local first = math.max(last, after, ARGV[8] - 1) + 1
local page = string.format('%.0f %s %.0f %s ', first, ARGV[3], before, ARGV[1]) .. ARGV[4]
local pages = redis.call('RPUSH', KEYS[1], page)
local pages_max, bytes_max, bytes = tonumber(ARGV[5]), tonumber(ARGV[6]), before + #page
while pages > 1 do
  if pages <= pages_max then
    if bytes <= bytes_max then break end
    local sum = string.match(redis.call('LINDEX', KEYS[1], 0), '^%d+ %d+ (%d+) ')
    if bytes - sum <= bytes_max then break end
  end
  redis.call('LPOP', KEYS[1])
  pages = pages - 1
end
-- Once an hour is often enough: the hour is part of the lifetime that is given.
if math.floor(last / 3600000) ~= math.floor(first / 3600000) then redis.call('PEXPIRE', KEYS[1], ARGV[7]) end
return page
