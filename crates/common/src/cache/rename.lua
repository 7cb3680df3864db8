-- Gives the hash KEYS[1] of the near members the new name ARGV[2], if it still has the name ARGV[1], and removes the
-- members after that. The new name makes every writer wait until what they may still use has run out. Returns whether
-- it did.
if redis.call('HGET', KEYS[1], 'roll') ~= ARGV[1] then
  return 0
end
redis.call('HSET', KEYS[1], 'roll', ARGV[2])
for at = 3, #ARGV do
  redis.call('HDEL', KEYS[1], ARGV[at])
end
return 1
