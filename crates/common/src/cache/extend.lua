-- Keeps a barrier at each key for ARGV[2] ms more: whichever writer's is there, since an attempt of ours that was given
-- up may have arrived late over the one that was confirmed. Where there is none, the barrier ARGV[1] is raised again,
-- also over a copy that was taken meanwhile. Returns how many were lost.
local lost = 0
for _, key in ipairs(KEYS) do
  local held = redis.pcall('GET', key)
  if type(held) == 'string' and #held == 17 and string.sub(held, 1, 1) == 'B' then
    redis.call('PEXPIRE', key, ARGV[2])
  else
    redis.call('SET', key, ARGV[1], 'PX', ARGV[2])
    lost = lost + 1
  end
end
return lost
