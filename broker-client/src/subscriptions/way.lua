-- Whose a subscription is. KEYS: way. Answers the user or nil.
return redis.call('GET', KEYS[1])
