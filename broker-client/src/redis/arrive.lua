-- Register connections, and say that their users are there: see admit.lua and status.lua. The living nodes are those
-- whose connections count. KEYS a connection: 1 its user's status, 2 its user's connections
-- ARGV after the nodes: 1 this node, 2 '1' when all that live are told;
--      a connection: 1 id, 2 limit, 3 user as JSON, 4 message without its payload, 5 pub/sub channel of this user
-- Answers for each: admitted, other live connections, wait, payload, event
local node, exact = argv[first], argv[first + 1] == '1'
local answers = {}
for user = 1, users do
  local at, n = first + 2 + 5 * (user - 1), #answers
  local status, connections = keys[2 * user - 1], keys[2 * user]
  local admitted, count = admit(connections, argv[at], node, tonumber(argv[at + 1]), live, exact)
  local wait, payload, event = 0, '', ''
  if admitted == 1 then
    wait, payload, event = settle(status, connections, 'seen', '', argv[at + 2], argv[at + 3], argv[at + 4])
  end
  answers[n + 1], answers[n + 2], answers[n + 3], answers[n + 4], answers[n + 5] = admitted, count, wait, payload, event
end
return answers
