-- Appends a lifecycle event with the next sequence number. `data` is a JSON object.
local function tell(stream, sequence, kind, time, data, length)
  local number = redis.call('INCR', sequence)
  redis.call('XADD', stream, 'MAXLEN', '~', length, '*', 'kind', 'event', 'type', kind, 'sequence', number, 'data',
    '{"kind":"event","type":"' .. kind .. '","sequence":' .. number .. ',"timestamp":"' .. time .. '","data":' .. data .. '}')
end
