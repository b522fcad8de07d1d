-- Recipients' index entries, where the record's own script did not write them. KEYS: five for each inbox.
-- ARGV: the entry.
local n = described(1)
if n.purge_at <= n.now then return 0 end
for at = 0, #KEYS - 5, 5 do add(inbox(at), n) end
return 1
