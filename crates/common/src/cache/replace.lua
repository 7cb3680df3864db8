-- Stores entries where what is expected is still there. Each key has three arguments: what its value must begin with
-- (the head of an entry, or a whole lease, which tell it from every other), the new value, and its life in ms. Returns
-- a list: 1 for each key that was set, else 0.
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
