#!/usr/bin/env python3
"""Many idle plugins at once: how long they take to start and stop, and what the core costs meanwhile.

    python3 benches/load/plugins.py [--plugins 100] [--seconds 20] [--bin target/release]

Copies the echo plugin, starts a daemon in a temporary folder, waits until all run, watches it idle, stops it.
Needs `cargo build --release --workspace --bins` first.
"""

import signal
import time

from common import Toru, arguments, cpu_seconds, headline, pss_mb, wakeups


def main():
    parser, finish = arguments(__doc__, programs=())
    parser.add_argument("--plugins", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=20, help="how long to watch it idle")
    args = finish()
    with Toru(args.bin, [f"echo-{number}" for number in range(args.plugins)]) as toru:
        time.sleep(2)
        cpu, woken, watched = cpu_seconds(toru.pid), wakeups(toru.pid), time.monotonic()
        time.sleep(args.seconds)
        watched = time.monotonic() - watched
        cpu = (cpu_seconds(toru.pid) - cpu) / watched * 100
        woken = (wakeups(toru.pid) - woken) / watched
        memory = pss_mb(toru.pid)
        began = time.monotonic()
        toru.process.send_signal(signal.SIGTERM)
        code = toru.process.wait(timeout=60)
        stopped = time.monotonic() - began
    print(headline())
    print(f"plugins                         {args.plugins}")
    print(f"start until all run             {toru.seconds_to_start:.2f} s")
    print(f"CPU of the core, idle           {cpu:.2f} % of one core")
    print(f"wake-ups of the core, idle      {woken:.1f} a second")
    print(f"memory of the core (PSS), idle  {memory:.1f} MB")
    print(f"stop until all are gone         {stopped:.2f} s, exit code {code}")


if __name__ == "__main__":
    main()
