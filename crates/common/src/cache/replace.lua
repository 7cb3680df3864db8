-- For each key three arguments: sets it to the second for so many ms as the third says, if what it holds begins with
-- the first: the head of an entry, or a whole lease, which tell it from every other. Returns 1 for those that it set.
local done = {}
for i, key in ipairs(KEYS) do
  local expected, new, ttl = ARGV[3 * i - 2], ARGV[3 * i - 1], ARGV[3 * i]
  done[i] = 0
  if redis.pcall('GETRANGE', key, 0, #expected - 1) == expected then
    redis.call('SET', key, new, 'PX', ttl)
    done[i] = 1
  end
end
return done
