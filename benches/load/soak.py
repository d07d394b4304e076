#!/usr/bin/env python3
"""Long load of mixed sizes: memory stays flat.

    python3 benches/load/soak.py [--seconds 600] [--connections 64] [--bin target/release]

One wrk asks for 30 B, 1 KB, 16 KB and 256 KB, and posts 1 KB, 16 KB and 256 KB, in random order. The memory of core and
plugin (PSS) is read every ten seconds; the first ten are left out. Compared are the medians of the first and the last
third.
"""

import statistics
import subprocess
import time
from pathlib import Path

from common import Toru, arguments, cpu_seconds, headline, pss_mb, tree, wrk_command, wrk_result

MIX = """
local base, requests = "{path}", {{}}
local post = function(size)
  return wrk.format("POST", base .. "echo", {{["content-type"] = "application/octet-stream"}}, string.rep("x", size))
end
init = function()
  for _, path in ipairs({{"", "", "", "", "bytes/1024", "bytes/16384", "bytes/262144"}}) do
    table.insert(requests, wrk.format("GET", base .. path))
  end
  for _, size in ipairs({{1024, 16384, 262144}}) do table.insert(requests, post(size)) end
end
request = function() return requests[math.random(#requests)] end
"""


def main():
    parser, finish = arguments(__doc__)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--every", type=float, default=10, help="seconds between two readings")
    args = finish()
    with Toru(args.bin) as toru:
        script = Path(toru.folder.name) / "mix.lua"
        script.write_text(MIX.format(path="/" + toru.url().split("/", 3)[3]))
        command = wrk_command(toru.url(), args.connections, args.seconds, script)
        began, used = time.monotonic(), cpu_seconds(*tree(toru.pid))
        load = toru.start(command, stdout=subprocess.PIPE, text=True)
        readings = []
        while load.poll() is None:
            try:
                load.wait(timeout=args.every)
            except subprocess.TimeoutExpired:
                plugins = [pid for pid in tree(toru.pid) if pid != toru.pid]
                readings.append((time.monotonic() - began, pss_mb(toru.pid), pss_mb(*plugins)))
        row = wrk_result(load.stdout.read())
        used = cpu_seconds(*tree(toru.pid)) - used
    readings = readings[1:]
    third = len(readings) // 3
    if third == 0:
        raise SystemExit("too short for three thirds")
    print(headline())
    print(f"{row['requests']:,} requests in {args.seconds} s, c={args.connections}, mixed sizes, ", end="")
    print(f"{row['not_2xx']} not 2xx, socket errors: {row['socket_errors'] or 'none'}, ", end="")
    print(f"{used / row['requests'] * 1e6:.0f} µs CPU a request\n")
    print("| memory (PSS), MB | first third | last third | ratio | least | most |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, column in (("core", 1), ("plugin", 2)):
        values = [reading[column] for reading in readings]
        first, last = statistics.median(values[:third]), statistics.median(values[-third:])
        print(f"| {name} | {first:.1f} | {last:.1f} | {last / first:.2f} | {min(values):.1f} | {max(values):.1f} |")


if __name__ == "__main__":
    main()
