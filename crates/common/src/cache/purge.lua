-- Removes what is cached at each key. Where a writer's barrier is, the barrier ARGV[1] takes its place for the rest of its
-- life: that writer has read its row before the purge, and is to leave no copy.
for _, key in ipairs(KEYS) do
  local held = redis.pcall('GET', key)
  if type(held) == 'string' and #held == 17 and string.sub(held, 1, 1) == 'B' then
    redis.call('SET', key, ARGV[1], 'KEEPTTL')
  else
    redis.call('DEL', key)
  end
end
