#!/usr/bin/env python3
"""What a request costs as workers, plugins and connections grow: it should stay what it is.

    python3 benches/load/scaling.py [--seconds 3] [--rounds 3] [--bin target/release]

CPU is user and system time of the core and all plugins per request, from /proc, medians over rounds; requests go to all
plugins in random order. The base of the ratios is one worker, one plugin, 64 connections.
On a machine whose cores are all taken by client, core and plugin, requests a second cannot grow with workers; that CPU
a request does not grow is what can be seen there.
"""

import statistics
from pathlib import Path

from common import Toru, arguments, cpu_seconds, headline, wrk

SPREAD = """
request = function() return wrk.format("GET", "/api/plugins/echo-" .. math.random({plugins}) .. "/") end
"""

# workers, plugins, connections
BASE = (1, 1, 64)
CELLS = [BASE, (2, 1, 64), (4, 1, 64)]
CELLS += [(1, 10, 64), (1, 100, 64), (2, 100, 64)]
CELLS += [(1, 1, 1), (1, 1, 16), (1, 1, 256), (1, 1, 1024), (2, 1, 1024)]


def main():
    parser, finish = arguments(__doc__)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    args = finish()
    rows = {cell: [] for cell in CELLS}
    for _ in range(args.rounds):
        for cell in CELLS:
            workers, plugins, connections = cell
            with Toru(args.bin, [f"echo-{n + 1}" for n in range(plugins)], workers=workers) as toru:
                script = Path(toru.folder.name) / "spread.lua"
                script.write_text(SPREAD.format(plugins=plugins))
                wrk(toru.url("echo-1"), connections, 1, script)
                core = cpu_seconds(toru.pid)
                row = wrk(toru.url("echo-1"), connections, args.seconds, script, toru.processes())
                row["core_us"] = (cpu_seconds(toru.pid) - core) / row["requests"] * 1e6
                rows[cell].append(row)
    middle = lambda cell, key: statistics.median(row[key] for row in rows[cell])
    print(f"{headline()}; {args.rounds} rounds of {args.seconds} s\n")
    print("| workers | plugins | connections | requests a second | p99 µs | CPU µs a request ", end="")
    print("| of it the core | against the first |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for cell in CELLS:
        rate, p99, cpu, core = (middle(cell, key) for key in ("per_second", "p99_us", "cpu_us", "core_us"))
        against = cpu / middle(BASE, "cpu_us")
        workers, plugins, connections = cell
        print(
            f"| {workers} | {plugins} | {connections} | {rate:,.0f} | {p99:,.0f} "
            f"| {cpu:.1f} | {core:.1f} | {against:.2f} |"
        )
    bad = sum(row["not_2xx"] for found in rows.values() for row in found)
    print(f"\nnot 200: {bad}")


if __name__ == "__main__":
    main()
