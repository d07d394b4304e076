#!/usr/bin/env python3
"""What one plugin in trouble does to another: the latency of a plugin that is asked at a steady pace, beside it.

    python3 benches/load/fairness.py [--seconds 5] [--rounds 5] [--bin target/release]

`quiet` gets requests from eight clients that pause between them, about 1 300 a second in all, which leaves the machine
mostly idle. Meanwhile `noisy`, in turn within each round,

- has nothing to do: the base of the ratios;
- is slow: 1 000 clients each wait two seconds for an answer, so its places are full and most of them queue;
- is slow and beyond its bounds: of 1 500 clients, those for whom there is no room in the queue ask again at once;
- is flooded: 256 clients ask as fast as they are answered;
- is flooded in a daemon of its own: what the same flood costs `quiet` by taking processors, which no daemon can help.

One worker, so that both plugins share it. Medians over rounds. Needs wrk.
"""

import time
from pathlib import Path

from common import Toru, arguments, headline, median, wrk, wrk_command

PACED = """
function delay() return math.random(2, 10) end
"""


def main():
    parser, finish = arguments(__doc__)
    parser.add_argument("--seconds", type=int, default=5, help="for each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    args = finish()
    with Toru(args.bin, ["echo-quiet", "echo-noisy"], workers=1) as toru, Toru(args.bin, workers=1) as other:
        script = Path(toru.folder.name) / "paced.lua"
        script.write_text(PACED)
        troubles = {
            "idle": None,
            "slow": (toru.url("echo-noisy", "delay/2000"), 1000),
            "slow, and beyond its bounds": (toru.url("echo-noisy", "delay/2000"), 1500),
            "flooded": (toru.url("echo-noisy"), 256),
            "flooded, in a daemon of its own": (other.url(), 256),
        }
        rows = {name: [] for name in troubles}
        for _ in range(args.rounds):
            for name, trouble in troubles.items():
                load = None
                if trouble:
                    url, connections = trouble
                    command = wrk_command(url, connections, args.seconds + 2)
                    load = toru.start(command + ["--timeout", "10"])
                    time.sleep(1)
                rows[name].append(wrk(toru.url("echo-quiet"), 8, args.seconds, script))
                if load:
                    load.wait()
    print(f"{headline()}; {args.rounds} rounds of {args.seconds} s\n")
    print("| `noisy` is | `quiet`: req/s | p50 µs | p99 µs | p99 against idle | not 200 |")
    print("| --- | --- | --- | --- | --- | --- |")
    base = median(rows["idle"], "p99_us")
    for name, found in rows.items():
        p50, p99, rate = (median(found, key) for key in ("p50_us", "p99_us", "per_second"))
        bad = sum(row["not_2xx"] for row in found)
        print(f"| {name} | {rate:,.0f} | {p50:,.0f} | {p99:,.0f} | {p99 / base:.2f} | {bad} |")
    shared, apart = (median(rows[name], "p99_us") for name in list(troubles)[3:])
    print(f"\nflooded beside it against flooded in a daemon of its own, p99: {shared / apart:.2f}")


if __name__ == "__main__":
    main()
