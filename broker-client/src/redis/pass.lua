-- Sends a message that no history holds, with a stamp in front: microseconds of this server, so that each is later than those
-- before it on the channel. Several of one script differ, whether or not the clock stands while it runs.
local passed = 0
local function pass(verb, channel, body)
  local time = redis.call('TIME')
  passed = passed + 1
  redis.call(verb, channel, string.format('%.0f - - - ', time[1] * 1000000 + time[2] + passed) .. body)
end
