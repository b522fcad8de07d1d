#!lua
-- A user's pages: a list, oldest first, of "first count before question body"; before is how many bytes came before it in all.

-- The page that answered a question, or nil: its ids are greater than the one that was asked with.
local function answered(pages, after, question)
  if question == '' then return nil end
  for at = -1, -1000000, -1 do
    local page = redis.call('LINDEX', pages, at)
    if not page then return nil end
    local first, asked = string.match(page, '^(%d+) %d+ %d+ ([^ ]*) ')
    if tonumber(first) <= after then return nil end
    if asked == question then return page end
  end
end

-- Counts a poll in a fixed window that begins with the first; the count and the milliseconds left.
local function counted(counter, window)
  local count = redis.call('INCR', counter)
  if count > 1 then return count, redis.call('PTTL', counter) end
  redis.call('PEXPIRE', counter, window)
  return count, window
end
