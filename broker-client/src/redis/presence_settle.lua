-- See status.lua. KEYS a user: 1 status, 2 connections; ARGV a user: 1 what happens, 2 chosen status or '', 3 user as JSON,
-- 4 message without its payload, 5 pub/sub channel of this user
-- Answers wait, payload, event of each user
local answers = {}
for user = 1, users do
  local at = first + 5 * (user - 1)
  local n = #answers
  answers[n + 1], answers[n + 2], answers[n + 3] =
    settle(keys[2 * user - 1], keys[2 * user], argv[at], argv[at + 1], argv[at + 2], argv[at + 3], argv[at + 4])
end
return answers
