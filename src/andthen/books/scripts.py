"""What Redis does in one go: the same rules as `limits.KeyLog`, in its own language. Knows no client.

A key of ours has three in Redis: `log`, a hash with the totals `r` and `t` (requests and tokens), the same of each
entry (`r<end>`, `t<end>`) and what each running grant reserved (`g<id>`: `<end>:<tokens>`); `slots`, the entries by
their end in milliseconds; `running`, the ids of the grants by the end of their lease. All three vanish by themselves.
"""

from __future__ import annotations

_COMMON = """
local log, slots, running = KEYS[1], KEYS[2], KEYS[3]
local window, slot_ms, lease = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])

local function held(field)
  return tonumber(redis.call('HGET', log, field) or 0)
end

local function add(field, amount)
  if amount ~= 0 then redis.call('HINCRBY', log, field, string.format('%.0f', amount)) end
end

local function keep()
  local span = window + slot_ms + lease
  for _, name in ipairs(KEYS) do redis.call('PEXPIRE', name, span) end
end

local function now_ms()
  local clock = redis.call('TIME')
  return tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
end
"""

TAKE = (
    _COMMON
    + """
local id, tokens = ARGV[4], tonumber(ARGV[5])
local most_requests, most_tokens, most_running = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local now = now_ms()

for _, slot in ipairs(redis.call('ZRANGEBYSCORE', slots, '-inf', now - window)) do
  add('r', 0 - held('r' .. slot))
  add('t', 0 - held('t' .. slot))
  redis.call('HDEL', log, 'r' .. slot, 't' .. slot)
  redis.call('ZREM', slots, slot)
end
for _, dead in ipairs(redis.call('ZRANGEBYSCORE', running, '-inf', now)) do
  redis.call('HDEL', log, 'g' .. dead)
  redis.call('ZREM', running, dead)
end

local requests, used = held('r'), held('t')

local function wait(field, needed)
  local freed = 0
  for _, slot in ipairs(redis.call('ZRANGE', slots, 0, -1)) do
    freed = freed + held(field .. slot)
    if freed >= needed then return tonumber(slot) + window - now end
  end
  return window
end

local refused, delay = 0, 0
if most_requests >= 0 and requests + 1 > most_requests then
  refused, delay = 1, wait('r', requests + 1 - most_requests)
end
if most_tokens >= 0 and used + tokens > most_tokens then
  local slides = wait('t', used + tokens - most_tokens)
  if slides >= delay then refused, delay = 2, slides end
end
if refused == 0 and most_running >= 0 and redis.call('ZCARD', running) >= most_running then refused = 3 end

if refused == 0 then
  local slot = string.format('%.0f', (math.floor(now / slot_ms) + 1) * slot_ms)
  redis.call('ZADD', slots, slot, slot)
  add('r', 1)
  add('t', tokens)
  add('r' .. slot, 1)
  add('t' .. slot, tokens)
  redis.call('ZADD', running, now + lease, id)
  redis.call('HSET', log, 'g' .. id, slot .. ':' .. string.format('%.0f', tokens))
  requests, used = requests + 1, used + tokens
  keep()
end

local reset, newest = 0, redis.call('ZRANGE', slots, -1, -1)[1]
if newest then reset = tonumber(newest) + window - now end
return {refused, delay, requests, used, reset}
"""
)
"""ARGV: window, slot and lease in ms; the grant's id; tokens; the three bounds, -1 for none. Returns which one refused
(0 none, 1 requests, 2 tokens, 3 concurrent), the wait in ms, requests and tokens in the window, and the reset in ms."""

SETTLE = (
    _COMMON
    + """
local id, tokens, forget = ARGV[4], tonumber(ARGV[5]), ARGV[6] == '1'
redis.call('ZREM', running, id)
local grant = redis.call('HGET', log, 'g' .. id)
if not grant then return {0} end
redis.call('HDEL', log, 'g' .. id)
local slot, reserved = string.match(grant, '(%d+):(%d+)')
if redis.call('ZSCORE', slots, slot) then
  add('t', tokens - tonumber(reserved))
  add('t' .. slot, tokens - tonumber(reserved))
  if forget then
    add('r', -1)
    add('r' .. slot, -1)
  end
end
return {1}
"""
)
"""ARGV: the spans; the grant's id; the tokens that it used; 1 where it was never begun. Returns whether it ran."""

RENEW = (
    _COMMON
    + """
local till = now_ms() + lease
for number = 4, #ARGV do redis.call('ZADD', running, till, ARGV[number]) end
keep()
return {1}
"""
)
"""ARGV: the spans; the grants' ids. A Redis that came back empty learns so what runs."""
