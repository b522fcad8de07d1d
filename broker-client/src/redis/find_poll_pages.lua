-- Find the page of an id, and the page that answered a question that was asked with it.
-- KEYS 1 pages; ARGV 1 id, 2 question or ''
-- Answers {page or '', page or ''}
local id, origin = tonumber(ARGV[1]), ''
for at = -1, -1000000, -1 do
  local page = redis.call('LINDEX', KEYS[1], at)
  if not page then break end
  local first, count = string.match(page, '^(%d+) (%d+) ')
  if tonumber(first) <= id then
    if id < first + count then origin = page end
    break
  end
end
return {origin, answered(KEYS[1], id, ARGV[2]) or ''}
