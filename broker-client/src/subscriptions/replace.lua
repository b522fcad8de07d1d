-- Replaces a record that is still as the caller has read it. KEYS: the shelf, way.
-- ARGV: now, id, user, record, purge_at, record as it was read. Answers 1; 0 when it is another by now.
if redis.call('HGET', all, ARGV[2]) ~= ARGV[6] then return 0 end
put(ARGV[2], ARGV[3], ARGV[4], ARGV[5])
return 1
