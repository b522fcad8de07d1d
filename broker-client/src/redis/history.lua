-- Read a page of history; the channel's epoch begins here when it has none.
-- KEYS 1 meta, 2 history
-- ARGV 1 'after', 'last' or 'top', 2 offset, 3 limit, 4 new epoch, 5 epoch lifetime ms
-- Answers {epoch, offset, tag, tag at start or false, entries}
local meta = redis.call('HMGET', KEYS[1], 'e', 'o', 't')
local epoch, offset, tag = meta[1], tonumber(meta[2] or '0'), meta[3]
if not epoch then
  epoch, offset, tag = ARGV[4], 0, '--------'
  redis.call('HSET', KEYS[1], 'e', epoch, 'o', 0, 't', tag)
  redis.call('PEXPIRE', KEYS[1], ARGV[5])
end
local at_start, entries = false, {}
if ARGV[1] == 'after' then
  local from = tonumber(ARGV[2])
  if from == offset then
    at_start = tag
  elseif from < offset then
    entries = redis.call('XRANGE', KEYS[2], from .. '-0', '+', 'COUNT', tonumber(ARGV[3]) + 1)
    local first = entries[1]
    if first then
      local number = tonumber(string.match(first[1], '^(%d+)-'))
      if number == from then
        at_start = first[2][4]
        table.remove(entries, 1)
      else
        if number == from + 1 then
          at_start = first[2][6]
        end
        entries[tonumber(ARGV[3]) + 1] = nil
      end
    end
  end
elseif ARGV[1] == 'last' and tonumber(ARGV[3]) > 0 then
  entries = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', ARGV[3])
end
return {epoch, offset, tag, at_start, entries}
