-- Users' announced status. Put before the scripts that use it. What is the same for all users of a call stands in
-- KEYS after 2 a user: the inbound stream and its sequence, where they live on this server; and in
-- ARGV 1 users, 2 gap ms, 3 lifetime ms, 4 caller's clock ms, 5 the same as text, 6 publish command,
--      7 pub/sub channel of everybody's status ('' announces nothing), 8 event to tell when somebody comes online,
--      9 when they go offline ('' tells nothing), 10 length of the stream, 11 living nodes, then these
local call, keys, argv = redis.call, KEYS, ARGV
local users, gap, lifetime, seen_at, seen_text = tonumber(argv[1]), tonumber(argv[2]), argv[3], argv[4], argv[5]
local stream, sequence = keys[2 * users + 1], keys[2 * users + 2]
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local live = {}
for index = 12, 11 + argv[11] do live[argv[index]] = true end
-- Where the users' own arguments begin.
local first = 12 + argv[11]

-- Makes a user's status what it should be, announced in the same step when it changes.
-- `status`: its key (v announced, c chosen, p announced at ms, l last seen ms, t the same as text, g not offline before ms,
--   o what the caller was told to announce and has not said that it did: event, space, payload);
-- `connections`: their key (id -> node); `what` happens: 'seen', 'look' or 'restore'; `picked`: a status they chose, or '';
-- `json`: the user; `head`: a message without its payload; `own`: pub/sub channel of this user ('' announces nothing).
-- Answers ms after which to look again or 0, payload announced or '', event or ''; without channels the caller announces
-- it and says so (presence_told.lua), without a stream it tells the event
local function settle(status, connections, what, picked, json, head, own)
  local known = call('HMGET', status, 'v', 'c', 'p', 't', 'g', 'o')
  local announced, chosen, at, text, grace = known[1], known[2], tonumber(known[3] or '0'), known[4], tonumber(known[5] or '0')
  local owed_event, owed = '', ''
  if known[6] then owed_event, owed = string.match(known[6], '^(%S*) (.*)$') end
  local wait, here = 0, what ~= 'look'
  local write = {'HSET', status}
  if here then
    write = {'HSET', status, 'l', seen_at, 't', seen_text}
    if known[5] then call('HDEL', status, 'g') end
    if picked ~= '' then
      chosen = picked
      write[7], write[8] = 'c', picked
    end
  else
    local nodes = call('HVALS', connections)
    for index = 1, #nodes do
      if live[nodes[index]] then here = true end
    end
    if here and grace > 0 and grace <= now then
      -- The farewell was another connection's.
      call('HDEL', status, 'g')
    end
    if not here and grace > now then
      here = true
      wait = grace - now
    end
  end
  local function keep()
    if #write > 2 then call(unpack(write)) end
    call('PEXPIRE', status, lifetime)
  end
  local wanted = here and (chosen or 'online') or 'offline'
  if wanted == announced or (not announced and wanted == 'offline') then
    keep()
    return wait, owed, owed_event
  end
  -- An event that nobody has told, and nobody will: it goes first, and the change has its turn after it.
  if owed_event ~= '' and now - at >= gap and what ~= 'restore' then
    keep()
    return gap, owed, owed_event
  end
  -- What Redis lost was announced once: it is written again in silence. A change that still waits for its turn is not that.
  local silent = what == 'restore' and not announced
  if not silent then
    if now - at < gap then
      keep()
      return at + gap - now, owed, owed_event
    end
    write[#write + 1] = 'p'
    write[#write + 1] = now
  end
  write[#write + 1] = 'v'
  write[#write + 1] = wanted
  -- Nobody said goodbye: the node died.
  if wanted == 'offline' and grace == 0 then
    for _, word in ipairs({'l', seen_at, 't', seen_text}) do write[#write + 1] = word end
  end
  keep()
  if wanted == 'offline' then call('HDEL', status, 'c', 'g') end
  if silent then return wait, '', '' end
  local seen = (wanted == 'offline' and grace > 0 and text) or seen_text
  local payload = '{"user_id":' .. json .. ',"status":"' .. wanted .. '","last_seen":"' .. seen .. '"}'
  if argv[7] ~= '' then pass(argv[6], argv[7], head .. payload) end
  if own ~= '' then pass(argv[6], own, head .. payload) end
  local event = ''
  if wanted == 'offline' then
    event = argv[9]
  elseif not announced or announced == 'offline' then
    event = argv[8]
  end
  if stream and event ~= '' then tell(stream, sequence, event, seen_text, payload, argv[10]) end
  if argv[7] == '' then call('HSET', status, 'o', event .. ' ' .. payload) end
  return wait, payload, event
end
