-- Raises the barrier ARGV[1] for ARGV[2] ms at each key after the first, over whatever is there. If there is a list of
-- changed keys ARGV[3], publishes it on the channel ARGV[5], and returns the hash KEYS[1] of the near members: each
-- acknowledges the message on the channel ARGV[6], and so does the script, so that a writer sees whether it hears acks.
-- The hash has a random name, ARGV[4] if it is new, and counts the messages. All in one script: messages leave in the
-- order of their numbers, and the members are those that were listed after the barriers stood.
--
-- Returns first how the values began that were there and began with ARGV[7]: the place of the key, the second being 0,
-- and the ARGV[8] bytes of the value's head.
local heads = {}
for at = 2, #KEYS do
  local held = redis.pcall('SET', KEYS[at], ARGV[1], 'PX', ARGV[2], 'GET')
  if type(held) == 'table' then
    -- There was no string, or Redis refuses to set one.
    redis.call('SET', KEYS[at], ARGV[1], 'PX', ARGV[2])
  elseif ARGV[7] ~= '' and held and string.sub(held, 1, #ARGV[7]) == ARGV[7] then
    heads[#heads + 1] = at - 2
    heads[#heads + 1] = string.sub(held, 1, ARGV[8])
  end
end
if ARGV[3] == '' then
  return {heads, {}}
end
redis.call('HSETNX', KEYS[1], 'roll', ARGV[4])
local position = redis.call('HGET', KEYS[1], 'roll') .. ' ' .. redis.call('HINCRBY', KEYS[1], 'seq', 1)
redis.call('PUBLISH', ARGV[5], position .. ' ' .. ARGV[3])
local members = redis.call('HGETALL', KEYS[1])
if #members > 4 then
  redis.call('PUBLISH', ARGV[6], position .. ' echo')
end
return {heads, members}
