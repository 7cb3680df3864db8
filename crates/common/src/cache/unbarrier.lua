-- Removes the barrier ARGV[1] from each key, or any value there that is no barrier; another writer's barrier stays.
-- Returns how many barriers were there.
local stood = 0
for _, key in ipairs(KEYS) do
  local held = redis.pcall('GET', key)
  if held == ARGV[1] then
    redis.call('DEL', key)
    stood = stood + 1
  elseif type(held) ~= 'string' or #held ~= 17 or string.sub(held, 1, 1) ~= 'B' then
    redis.call('DEL', key)
  end
end
return stood
