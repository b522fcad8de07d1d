-- One recipient's index entry, where keys live on several servers. KEYS: the inbox. ARGV: the entry.
local n = described(1)
local box = inbox(0)
purge(box, n.now)
if n.purge_at > n.now then add(box, n) end
return 1
