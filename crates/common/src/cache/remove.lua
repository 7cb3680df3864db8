-- Deletes KEYS[1] if it holds exactly ARGV[1], or no string at all. Returns how many keys were deleted.
if redis.call('TYPE', KEYS[1]).ok ~= 'string' or redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
