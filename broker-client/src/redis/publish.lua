-- One publication; behind append.lua.
-- KEYS 1 meta, 2 history, 3 pub/sub channel, 4 idempotency, where asked for; 5 a second key of it
-- ARGV 1 body, 2 new tag, 3 new epoch, 4 size, 5 age ms, 6 meta's lifetime ms, 7 publish command, 8 message id,
--      9 idempotency ms
local keys, argv = KEYS, ARGV
return append(keys[1], keys[2], keys[3], keys[4], argv[1], argv[2], argv[3], argv[4], argv[5], argv[6], argv[7], argv[8],
  argv[9], call('TIME'), keys[5])
