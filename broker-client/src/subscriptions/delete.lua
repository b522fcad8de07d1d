-- KEYS: the shelf, way. ARGV: now, id. Answers the record as it was, or nil.
local record = redis.call('HGET', all, ARGV[2])
drop({ARGV[2]})
redis.call('DEL', KEYS[3])
keep()
return record
