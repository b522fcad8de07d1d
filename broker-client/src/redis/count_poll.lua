-- Count a poll, and find the page that answered its question; behind polls.lua.
-- KEYS 1 counter, 2 pages; ARGV 1 window ms or 0 to count nothing, 2 id that was asked with, 3 question or ''
-- Answers {count, ms left, page or ''}
local count, left, window = 0, 0, tonumber(ARGV[1])
if window > 0 then count, left = counted(KEYS[1], window) end
return {count, left, answered(KEYS[2], tonumber(ARGV[2]), ARGV[3]) or ''}
