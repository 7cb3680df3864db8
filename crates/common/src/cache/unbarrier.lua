-- Lowers the barrier ARGV[1] at each key. Each has two more arguments: the entry to leave in its place, and the life of
-- that in ms, or nothing. What is no barrier is removed, and another writer's barrier stays. Returns how many barriers
-- were there.
local stood = 0
for i, key in ipairs(KEYS) do
  local entry, ttl = ARGV[2 * i], ARGV[2 * i + 1]
  local held = redis.pcall('GET', key)
  if held == ARGV[1] then
    stood = stood + 1
    -- A Redis that is full refuses to set it.
    if entry == '' or redis.pcall('SET', key, entry, 'PX', ttl).err then
      redis.call('DEL', key)
    end
  elseif type(held) ~= 'string' or #held ~= 17 or string.sub(held, 1, 1) ~= 'B' then
    redis.call('DEL', key)
  end
end
return stood
