-- Several publications of one server, in their order; behind append.lua. One that fails does not keep back those behind it.
-- KEYS for each: meta, history, pub/sub channel, and idempotency where it has a message id
-- ARGV 1 new epoch, 2 publish command, 3 idempotency ms; for each: body, new tag, size, age ms, meta's lifetime ms,
--      message id, empty without idempotency
-- Answers what each would by itself, or its error
local keys, argv = KEYS, ARGV
local fresh, verb, window, time = argv[1], argv[2], argv[3], call('TIME')
local answers, k, a = {}, 1, 4
while argv[a] do
  local id = argv[a + 5]
  local once = id ~= '' and keys[k + 3] or nil
  local done, answer = pcall(append, keys[k], keys[k + 1], keys[k + 2], once, argv[a], argv[a + 1], fresh, argv[a + 2],
    argv[a + 3], argv[a + 4], verb, id, window, time)
  if not done and type(answer) ~= 'table' then answer = { err = 'ERR ' .. tostring(answer) } end
  answers[#answers + 1] = answer
  k, a = k + (once and 4 or 3), a + 6
end
return answers
