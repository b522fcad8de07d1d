-- Count a poll where that is asked for, and if it is not one too many keep a page of the user's answers under fresh ids, or
-- answer the page that the question has already; behind polls.lua.
-- KEYS 1 pages, 2 counter
-- ARGV 1 question or '', 2 id that was asked with, 3 count, 4 body, 5 pages at most, 6 bytes at most, 7 lifetime ms, 8 now ms,
--      9 window ms and 10 polls at most, where it is to be counted
-- Answers {count, ms left, the page's first id; the page, if it was there; '' when it was one poll too many}
local count, left = 0, 0
if ARGV[9] then
  count, left = counted(KEYS[2], tonumber(ARGV[9]))
  if count > tonumber(ARGV[10]) then return {count, left, ''} end
end
local after, last, before = tonumber(ARGV[2]), 0, 0
local newest = redis.call('LINDEX', KEYS[1], -1)
if newest then
  local first, ids, sum = string.match(newest, '^(%d+) (%d+) (%d+) ')
  last, before = first + ids - 1, sum + #newest
  -- Mostly the question was asked with the newest id: nothing can have answered it.
  local page = last > after and answered(KEYS[1], after, ARGV[1])
  if page then return {count, left, page} end
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
return {count, left, first}
