-- Make a user's announced status what it should be; announced in the same step when it changes.
-- KEYS 1 status (v announced, c chosen, p announced at ms, l last seen ms, t the same as text, g not offline before ms,
--      o what the caller was told to announce and has not said that it did: event, space, payload),
--      2 the user's connections (id -> node), 3 inbound stream and 4 its sequence, where they live on this server
-- ARGV 1 what happens: 'seen', 'departed', 'look' or 'restore', 2 chosen status or '', 3 delay ms, 4 gap ms, 5 lifetime ms,
--      6 caller's clock ms, 7 the same as text, 8 user as JSON, 9 message without its payload, 10 publish command,
--      11 pub/sub channel of all, 12 of this user ('' announces nothing),
--      13 event to tell when they come online, 14 when they go offline ('' tells nothing), 15 length of the stream, 16… living nodes
-- Answers {ms after which to look again or 0, payload announced or '', event or ''}; without channels the caller announces it
-- and says so (presence_told.lua), without a stream it tells the event
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local known = redis.call('HMGET', KEYS[1], 'v', 'c', 'p', 't', 'g', 'o')
local announced, chosen, at, text, grace = known[1], known[2], tonumber(known[3] or '0'), known[4], tonumber(known[5] or '0')
local owed_event, owed = '', ''
if known[6] then owed_event, owed = string.match(known[6], '^(%S*) (.*)$') end
local wait, here = 0, ARGV[1] == 'seen' or ARGV[1] == 'restore'
if here then
  redis.call('HSET', KEYS[1], 'l', ARGV[6], 't', ARGV[7])
  redis.call('HDEL', KEYS[1], 'g')
  if ARGV[2] ~= '' then
    chosen = ARGV[2]
    redis.call('HSET', KEYS[1], 'c', chosen)
  end
elseif ARGV[1] == 'departed' then
  grace = now + tonumber(ARGV[3])
  redis.call('HSET', KEYS[1], 'l', ARGV[6], 't', ARGV[7], 'g', grace)
  redis.call('PEXPIRE', KEYS[1], ARGV[5])
  return {tonumber(ARGV[3]), '', ''}
end
if not here then
  local live = {}
  for index = 16, #ARGV do live[ARGV[index]] = true end
  local connections = redis.call('HVALS', KEYS[2])
  for index = 1, #connections do
    if live[connections[index]] then here = true end
  end
  if here and grace > 0 and grace <= now then
    -- The farewell was another connection's.
    redis.call('HDEL', KEYS[1], 'g')
  end
  if not here and grace > now then
    here = true
    wait = grace - now
  end
end
local wanted = here and (chosen or 'online') or 'offline'
if wanted == announced or (not announced and wanted == 'offline') then
  redis.call('PEXPIRE', KEYS[1], ARGV[5])
  return {wait, owed, owed_event}
end
-- What Redis lost was announced once: it is written again in silence. A change that still waits for its turn is not that.
local silent = ARGV[1] == 'restore' and not announced
if not silent then
  if now - at < tonumber(ARGV[4]) then
    return {at + tonumber(ARGV[4]) - now, owed, owed_event}
  end
  redis.call('HSET', KEYS[1], 'p', now)
end
redis.call('HSET', KEYS[1], 'v', wanted)
if wanted == 'offline' then
  redis.call('HDEL', KEYS[1], 'c', 'g')
  -- Nobody said goodbye: the node died.
  if grace == 0 then redis.call('HSET', KEYS[1], 'l', ARGV[6], 't', ARGV[7]) end
end
redis.call('PEXPIRE', KEYS[1], ARGV[5])
if silent then return {wait, '', ''} end
local seen = (wanted == 'offline' and grace > 0 and text) or ARGV[7]
local payload = '{"user_id":' .. ARGV[8] .. ',"status":"' .. wanted .. '","last_seen":"' .. seen .. '"}'
if ARGV[11] ~= '' then redis.call(ARGV[10], ARGV[11], ARGV[9] .. payload) end
if ARGV[12] ~= '' then redis.call(ARGV[10], ARGV[12], ARGV[9] .. payload) end
local event = ''
if wanted == 'offline' then
  event = ARGV[14]
elseif not announced or announced == 'offline' then
  event = ARGV[13]
end
if KEYS[3] and event ~= '' then tell(KEYS[3], KEYS[4], event, ARGV[7], payload, ARGV[15]) end
if ARGV[11] == '' then redis.call('HSET', KEYS[1], 'o', event .. ' ' .. payload) end
return {wait, payload, event}
