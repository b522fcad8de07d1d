-- Take, keep or give back a lease. KEYS 1 lease; ARGV 1 node, 2 ms, 0 to give it back. Answers 1 when the node has it
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
if ARGV[2] == '0' then
  if holder then redis.call('DEL', KEYS[1]) end
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
