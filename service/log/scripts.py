"""Lua scripts: the server runs each without another command in between.

The trainer writes little, and its writes let the log be trimmed: they are allowed when the
server's memory is full; otherwise nothing would ever make room. Examples are not.
"""

APPEND_ONCE = """
local seen = redis.call('GET', KEYS[2])
if seen then return seen end
local kept = redis.call('XLEN', KEYS[3])
local id = redis.call('XADD', KEYS[1], '*', ARGV[6], ARGV[3], 'source', 'http', 'crc32', ARGV[4])
local answer = ARGV[1] .. ' ' .. id
if id == '18446744073709551615-18446744073709551615' then return answer end
redis.call('SET', KEYS[2], answer)
local digest = string.match(KEYS[2], '[^:]*$')
local start = string.sub(KEYS[2], 1, -#digest - 1)
redis.call('XADD', KEYS[3], '*', 'key', digest)
for _ = 1, math.min(kept + 1 - tonumber(ARGV[5]), 16) do
  local oldest = redis.call('XRANGE', KEYS[3], '-', '+', 'COUNT', 1)[1]
  redis.call('XDEL', KEYS[3], oldest[1])
  local known = redis.call('GET', start .. oldest[2][2])
  if known then redis.call('SET', start .. oldest[2][2], known, 'EX', ARGV[2]) end
end
return answer
"""
"""KEYS: log, key, newest keys. ARGV: digest of the payload, seconds, payload, its CRC-32, number of
keys kept, field of the payload. The newest keys are remembered whatever the server's clock does,
the others for so many seconds longer. An entry with the highest id is not accepted, so its key is
not remembered."""

BEGIN_PARTITIONS = """
local found, chosen = {}, 1
if ARGV[1] == 'latest' then
  chosen = 2
  for i = 2, #ARGV, 3 do
    if redis.call('HEXISTS', KEYS[1], ARGV[i]) == 1 then chosen = 1 end
  end
end
for i = 2, #ARGV, 3 do
  redis.call('HSETNX', KEYS[1], ARGV[i], ARGV[i + chosen])
  found[#found + 1] = redis.call('HGET', KEYS[1], ARGV[i])
end
return found
"""
"""KEYS: sources. ARGV: earliest or latest, then partitions, each with the offset before its first
message and that of its last one. The first caller decides where a partition begins; all get the
last offset that is in the log. If one partition is known, the others are younger, and begin with
their first message."""

CARRY = """
local function above(a, b)
  if string.sub(a, 1, 1) == '-' then return false end
  if string.sub(b, 1, 1) == '-' then return true end
  return #a > #b or (#a == #b and a > b)
end
local last = redis.call('HGET', KEYS[2], ARGV[1])
if not last or above(ARGV[2], last) then return {-1, last or ''} end
local added, i = 0, 3
while i < #ARGV do
  local offset, fields = ARGV[i], tonumber(ARGV[i + 1])
  if above(offset, last) then
    local own = {'source', ARGV[1] .. '@' .. offset}
    for k = i + 2, i + 1 + fields do own[#own + 1] = ARGV[k] end
    local id = redis.call('XADD', KEYS[1], '*', unpack(own))
    if id == '18446744073709551615-18446744073709551615' then
      return redis.error_reply('the log has given out its highest id')
    end
    redis.call('HSET', KEYS[2], ARGV[1], offset)
    last, added = offset, added + 1
  end
  i = i + 2 + fields
end
return {added, last}
"""
"""KEYS: log, sources. ARGV: partition, the offset of the message before these, then each message's
offset, the number of its fields and values, and these. An offset is a decimal number of any length,
or -1 before the first. A message whose offset is not above the partition's last is in the log
already. It returns how many were appended, and the last offset; -1, and nothing is appended, if the
message before is not in the log: a script that failed, or a log that lost its end, must leave no
hole."""

CLAIM_INPUTS = """#!lua flags=allow-oom
local inputs = redis.call('GET', KEYS[1])
if inputs then return inputs end
inputs = ARGV[1]
local kinds = {batch = 'features', json = 'features', arrow = 'rows', rows = 'rows', row = 'rows'}
local first = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
for i = 1, first and #first[2] or 0, 2 do
  local kind = kinds[first[2][i]]
  if kind then
    if string.sub(inputs, 1, #kind) ~= kind then inputs = kind end
    break
  end
end
if inputs ~= '' then redis.call('SET', KEYS[1], inputs) end
return inputs
"""
"""KEYS: inputs, log. ARGV: what the caller has, or '' to ask. The first claim stays, and the first
entry of the log claims before anybody, though it does not say whether its labels are numbers. It
returns what is claimed, or ''."""

APPEND_CUTS = """#!lua flags=allow-oom
local epoch = redis.call('GET', KEYS[1])
if epoch ~= ARGV[1] then return tostring(epoch) end
for _, text in ipairs(cjson.decode(ARGV[4])) do
  local id, body, dead, sum = text[1], text[2], text[3], text[4]
  redis.call('XADD', KEYS[2], id, 'cut', body, 'crc32', sum)
  for _, letter in ipairs(dead) do
    local fields = {'entry', letter[1], 'reason', letter[2]}
    local found = redis.call('XRANGE', KEYS[4], letter[1], letter[1])
    local room, theirs = tonumber(ARGV[3]), found[1] and found[1][2] or {}
    for i = 1, #theirs, 2 do
      if #theirs[i] >= room or #fields >= 4000 then break end
      fields[#fields + 1], room = theirs[i], room - #theirs[i]
      fields[#fields + 1] = string.sub(theirs[i + 1], 1, room)
      room = room - #fields[#fields]
    end
    redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[2], '*', unpack(fields))
  end
end
if ARGV[5] ~= '' then redis.call('SET', KEYS[5], ARGV[5]) end
return false
"""
"""KEYS: epoch, cuts, dead, log, schema. ARGV: epoch, dead kept, bytes of each, then for each cut
its number, text, dead letters and checksum, and the schema after the cuts if they change it, or ''.
Nothing is written, and the present epoch is returned, unless it is still the caller's."""

RECORD_SKIPPED = """#!lua flags=allow-oom
local recorded = tonumber(redis.call('GET', KEYS[2]) or '0')
recorded = math.min(recorded, tonumber(ARGV[3]) or recorded)
for _, row in ipairs(cjson.decode(ARGV[2])) do
  if tonumber(row[1]) > recorded then
    redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'version', row[1], 'begin', row[2],
               'end', row[3], 'examples', row[4], 'reason', row[5])
    recorded = tonumber(row[1])
  end
end
redis.call('SET', KEYS[2], string.format('%d', recorded))
return 1
"""
"""KEYS: dead, aside. ARGV: dead kept, then for each batch its version, begin, end, examples and
reason, and the version of a model that may have gone back to it, or ''. A batch is recorded once,
however often it is replayed."""

TAKE_EPOCH = """#!lua flags=allow-oom
local epoch = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), tonumber(ARGV[1])) + 1
redis.call('SET', KEYS[1], string.format('%d', epoch))
return epoch
"""
"""KEYS: epoch. ARGV: the highest epoch that the caller knows."""

TRIM = """#!lua flags=allow-oom
if #redis.call('XREVRANGE', KEYS[1], '+', ARGV[1], 'COUNT', 1) > 0 then
  redis.call('XTRIM', KEYS[1], 'MINID', ARGV[1])
end
if ARGV[3] ~= '0-0' then redis.call('XTRIM', KEYS[3], 'MINID', ARGV[3]) end
return redis.call('XTRIM', KEYS[2], 'MINID', ARGV[2])
"""
"""KEYS: log, cuts, questions. ARGV: an id of each. A log without that entry or a later one has lost
its end, and after a step of the server's clock its new entries have lower ids: they stay."""

DESCRIBE = """
if redis.call('EXISTS', KEYS[2]) == 0 then redis.call('SET', KEYS[2], ARGV[1]) end
local found = {kind = redis.call('TYPE', KEYS[1]).ok, uuid = redis.call('GET', KEYS[2])}
if found.kind == 'stream' then
  local info = redis.call('XINFO', 'STREAM', KEYS[1])
  for i = 1, #info, 2 do found[info[i]] = info[i + 1] end
  found['first-entry'] = found['first-entry'] and found['first-entry'][1]
  found['last-entry'] = nil
end
local now = redis.call('TIME')
found.time = string.format('%d', now[1] * 1000 + math.floor(now[2] / 1000))
if KEYS[3] and redis.call('EXISTS', KEYS[3]) == 1 then
  local asked = redis.call('XINFO', 'STREAM', KEYS[3])
  for i = 1, #asked, 2 do
    if asked[i] == 'last-generated-id' then found.asked = asked[i + 1] end
  end
end
return cjson.encode(found)
"""
"""KEYS: log, uuid and perhaps the questions. ARGV: a uuid for the log if it has none. The reply has
the server's time in milliseconds, and lacks the entries themselves, which XINFO STREAM would send
along. It writes only where it must: a full disk allows no write."""

READ = """
local found, bytes, after = {}, 0, ARGV[1]
while #found < tonumber(ARGV[2]) and bytes < tonumber(ARGV[3]) do
  if after == '18446744073709551615-18446744073709551615' then break end
  local entry = redis.call('XRANGE', KEYS[1], '(' .. after, '+', 'COUNT', 1)[1]
  if not entry then break end
  found[#found + 1], after = entry, entry[1]
  for _, field in ipairs(entry[2]) do bytes = bytes + #field end
end
return found
"""
"""KEYS: log. ARGV: an id, the most entries, the most bytes; the last entry may exceed them. XRANGE
refuses to look for entries after the highest id."""

RAISE_ASKED = """#!lua flags=allow-oom
local asked = redis.pcall('XADD', KEYS[1], ARGV[1], 'ids', '')
if asked.err then
  if string.find(asked.err, 'equal or smaller') then return 0 end
  return asked
end
redis.call('XDEL', KEYS[1], ARGV[1])
return 1
"""
"""KEYS: questions. ARGV: an id; the next question gets a higher one. Nothing is added."""

ASKED = """
local found, bytes, after = {}, 0, ARGV[1]
while #found < tonumber(ARGV[2]) and bytes < tonumber(ARGV[3]) do
  if after == '18446744073709551615-18446744073709551615' then break end
  local entry = redis.call('XRANGE', KEYS[1], '(' .. after, '+', 'COUNT', 1)[1]
  if not entry then break end
  local ids, size = '', 0
  for i = 1, #entry[2], 2 do
    size = size + #entry[2][i] + #entry[2][i + 1]
    if entry[2][i] == 'ids' then ids = entry[2][i + 1] end
  end
  found[#found + 1], after, bytes = {entry[1], ids, size}, entry[1], bytes + size
end
return found
"""
"""KEYS: questions. ARGV: an id, the most entries, the most bytes that the server reads. It returns
of each entry its id, the hashes of the questions' ids, and its size in bytes."""

FETCH = """
local found, bytes = {}, 0
for i = 2, #ARGV do
  if bytes >= tonumber(ARGV[1]) then break end
  local entry = redis.call('XRANGE', KEYS[1], ARGV[i], ARGV[i])[1]
  found[i - 1] = entry and entry[2] or {}
  for _, field in ipairs(found[i - 1]) do bytes = bytes + #field end
end
return found
"""
"""KEYS: questions. ARGV: the most bytes, ids of entries. It returns the fields of the first of
them, none if an entry is gone; the last may exceed the bytes."""

LAST_ID = """
if redis.call('EXISTS', KEYS[1]) == 0 then return '0-0' end
local info = redis.call('XINFO', 'STREAM', KEYS[1])
for i = 1, #info, 2 do
  if info[i] == 'last-generated-id' then return info[i + 1] end
end
"""
"""KEYS: a stream. It returns the highest id that the stream ever gave out."""

DROP_FROM = (
    "local kept=redis.call('XRANGE',KEYS[1],'-','('..ARGV[1]) redis.call('DEL',KEYS[1]) "
    "for _,e in ipairs(kept) do redis.call('XADD',KEYS[1],e[1],unpack(e[2])) end"
)
"""KEYS: a stream. ARGV: the first id to drop. Only a new stream gives out an id again.
Operators run this script by hand."""

COUNT = """
local count, after = 0, ARGV[1]
while count < tonumber(ARGV[3]) do
  if after == '18446744073709551615-18446744073709551615' then break end
  local found = redis.call('XRANGE', KEYS[1], '(' .. after, ARGV[2], 'COUNT', 16)
  if #found == 0 then break end
  count, after = count + #found, found[#found][1]
end
return {count, after}
"""
"""KEYS: log. ARGV: an id, the last id, the most. It returns the number of entries after the first
up to the last, and the id of the last of them. It reads a few at a time: all that XRANGE returns is
in memory."""

TAKE_LEASE = """#!lua flags=allow-oom
local held, mine = redis.call('GET', KEYS[1]), false
local left = redis.pcall('PTTL', KEYS[1])
if type(left) == 'number' and left < 0 then held = false end
if held then
  mine = string.sub(held, -#ARGV[1]) == ARGV[1]
  local heir = ARGV[3] ~= '' and string.sub(held, 1, #ARGV[3]) == ARGV[3]
  if not mine and not heir then return 0 end
end
if ARGV[2] == '0' then return mine and redis.call('DEL', KEYS[1]) or 0 end
redis.call('SET', KEYS[1], ARGV[3] .. ARGV[1], 'PX', ARGV[2])
if not mine then redis.call('SET', KEYS[2], ARGV[1] .. ' ' .. ARGV[4]) end
return mine and 2 or 1
"""
"""KEYS: lease, learner. ARGV: holder, milliseconds, name of the lock that the caller holds, or '',
and what the caller publishes of itself. Zero milliseconds give the lease up. The lease holds both
names: a caller that holds the lock now inherits the lease of the holder that had it. A key that
never expires is no lease: another program wrote it. The script returns 0: another process holds the
lease; 1: the caller holds it from now on; 2: it held it before."""
