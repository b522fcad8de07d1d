-- For each user: count a poll where that is asked for, and if it is not one too many keep a page of their answers under fresh
-- ids, or answer the page that the question has already; behind polls.lua.
-- KEYS for each: pages, counter
-- ARGV 1 pages at most, 2 bytes at most, 3 lifetime ms, 4 now ms; for each: question or '', id that was asked with, count, body,
--      window ms or 0 to count nothing, polls at most
-- Answers for each: count, ms left, the page's first id; the page, if it was there; '' when it was one poll too many
-- Local names and few string operations: Lua itself costs more here than the calls.
local keys, argv, call, match = KEYS, ARGV, redis.call, string.match
local pages_max, bytes_max, lifetime, before_now = tonumber(argv[1]), tonumber(argv[2]), argv[3], argv[4] - 1

local function keep(pages, counter, question, after, ids, body, window, most)
  local count, left = 0, 0
  if window > 0 then
    count, left = counted(counter, window)
    if count > most then return count, left, '' end
  end
  local last, before = 0, 0
  local newest = call('LINDEX', pages, -1)
  if newest then
    local first, given, sum = match(newest, '^(%d+) (%d+) (%d+) ')
    last, before = first + given - 1, sum + #newest
    -- Mostly the question was asked with the newest id: nothing can have answered it.
    local page = last > after and answered(pages, after, question)
    if page then return count, left, page end
  end
  local first = math.max(last, after, before_now) + 1
  local page = string.format('%.0f %s %.0f %s ', first, ids, before, question) .. body
  local held, bytes = call('RPUSH', pages, page), before + #page
  while held > 1 do
    if held <= pages_max then
      if bytes <= bytes_max then break end
      local sum = match(call('LINDEX', pages, 0), '^%d+ %d+ (%d+) ')
      if bytes - sum <= bytes_max then break end
    end
    call('LPOP', pages)
    held = held - 1
  end
  -- Once an hour is often enough: the hour is part of the lifetime that is given.
  if math.floor(last / 3600000) ~= math.floor(first / 3600000) then call('PEXPIRE', pages, lifetime) end
  return count, left, first
end

local answers, k, a, n = {}, 1, 5, 0
while keys[k] do
  answers[n + 1], answers[n + 2], answers[n + 3] = keep(keys[k], keys[k + 1], argv[a], tonumber(argv[a + 1]), argv[a + 2],
    argv[a + 3], tonumber(argv[a + 4]), tonumber(argv[a + 5]))
  k, a, n = k + 2, a + 6, n + 3
end
return answers
