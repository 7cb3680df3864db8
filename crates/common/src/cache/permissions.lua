-- Returns those of the commands ARGV that the user of this connection may not run. A command's words are separated by
-- spaces. Servers that cannot say it are taken to allow all.
local refused = {}
for _, command in ipairs(ARGV) do
  local words = {}
  for word in string.gmatch(command, '%S+') do
    table.insert(words, word)
  end
  if redis.acl_check_cmd and not redis.acl_check_cmd(unpack(words)) then
    table.insert(refused, command)
  end
end
return refused
