-- Register a connection of a user unless too many live ones are there: see admit.lua.
-- KEYS 1 the user's connections; ARGV 1 id, 2 node, 3 limit, 4 '1' when all that live are told, 5… nodes that count
-- Answers {1, 0 or 2; other live connections}
local live = {}
for index = 5, #ARGV do live[ARGV[index]] = true end
local admitted, count = admit(KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3]), live, ARGV[4] == '1')
return {admitted, count}
