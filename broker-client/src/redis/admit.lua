#!lua
-- Registers a connection of a user unless `limit` live ones are there (0: no limit). `connections`: the user's (id -> node);
-- `live`: nodes that count; put before the scripts that use it.
-- Answers 1 when it is registered, 0 when too many are there, 2 when nodes that are not in `live` have some and `exact`
-- does not say that they are dead: nothing is done then; and the number of other live connections
local function admit(connections, id, node, limit, live, exact)
  local count = 0
  if limit > 0 then
    local entries = redis.call('HGETALL', connections)
    for index = 1, #entries, 2 do
      -- Who polls is no connection (POLLER_PREFIX).
      if entries[index] ~= id and string.sub(entries[index], 1, 5) ~= 'poll:' then
        if live[entries[index + 1]] then
          count = count + 1
        elseif not exact then
          return 2, 0
        end
      end
    end
    if count >= limit then return 0, count end
  end
  redis.call('HSET', connections, id, node)
  return 1, count
end
