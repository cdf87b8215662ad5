-- wrk's script for every wire form: posts one file again and again, and tells what came of it as one line of JSON.
-- wrk -s post.lua URL -- FILE [NAME=VALUE ...]   (headers)

local posted

function init(args)
  local file = assert(io.open(args[1], "rb"))
  local body = file:read("*a")
  file:close()
  local headers = {}
  for place = 2, #args do
    local name, value = args[place]:match("^([^=]+)=(.*)$")
    headers[name] = value
  end
  posted = wrk.format("POST", nil, headers, body)
end

function request()
  return posted
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '{"requests":%d,"microseconds":%d,"p50":%d,"p99":%d,"refused":%d,"broken":%d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), errors.status,
    errors.connect + errors.read + errors.write + errors.timeout))
end
