-- What must be told of a resource: takes away what was told, answers the oldest that is left.
-- KEYS 1 what must be told (see presence_record.lua); ARGV 1 how many to answer, 2… what was told
for index = 2, #ARGV do redis.call('LREM', KEYS[1], 1, ARGV[index]) end
return redis.call('LRANGE', KEYS[1], 0, ARGV[1] - 1)
