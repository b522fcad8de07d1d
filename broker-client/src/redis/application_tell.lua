-- Tell one event. KEYS 1 inbound stream, 2 its sequence; ARGV 1 kind ('' leaves a number out), 2 time as text, 3 data, 4 length
if ARGV[1] == '' then return redis.call('INCR', KEYS[2]) end
tell(KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3], ARGV[4])
return 1
