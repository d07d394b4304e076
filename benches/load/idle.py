#!/usr/bin/env python3
"""Many open connections at rest: what each costs the core.

    python3 benches/load/idle.py [--connections 10000] [--drivers io_uring,epoll] [--bin target/release]

For each driver: starts a daemon with one echo plugin in a temporary folder, opens the connections, and measures the
core's memory when they are new, and again when each has had a request answered.
What the kernel keeps for a socket is not the core's and not counted.
Needs `cargo build --release --workspace --bins` first.
"""

import resource
import socket
import time

from common import Toru, arguments, ask, headline, pss_mb


WHAT = [
    "memory of the core (PSS) before",
    "a new one",
    "one whose request is answered",
    "a request on one more",
]


def connect(address):
    connection = socket.create_connection(address)
    connection.settimeout(30)
    return connection


def check(connection):
    if (status := ask(connection)) != 200:
        raise SystemExit(f"{status} instead of 200")


def main():
    parser, finish = arguments(__doc__, programs=())
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--drivers", default="io_uring,epoll", help="with commas between them")
    args = finish()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    drivers = args.drivers.split(",")
    found = [measure(args.bin, driver, args.connections) for driver in drivers]
    print(f"{headline()}\n")
    print(f"| {args.connections} connections at rest | {' | '.join(drivers)} |")
    print("| --- |" + " --- |" * len(drivers))
    for what, *values in zip(WHAT, *found):
        print(f"| {what} | {' | '.join(values)} |")


def measure(binaries, driver, count):
    """What is in `WHAT`."""
    with Toru(binaries, driver=driver, config="[http]\nidle_timeout_ms = 600000\n") as toru:
        host, port = toru.address.split(":")
        address = (host, int(port))
        check(connect(address))
        # What the start needed for a moment is given back by then.
        time.sleep(8)
        before = pss_mb(toru.pid)
        connections = [connect(address) for _ in range(count)]
        # Answered after them, so they have been accepted.
        for _ in range(100):
            check(connect(address))
        time.sleep(1)
        new = pss_mb(toru.pid)
        for connection in connections:
            check(connection)
        time.sleep(1)
        used = pss_mb(toru.pid)
        began = time.monotonic()
        check(connect(address))
        took = time.monotonic() - began
    each = 1024 / count
    return [
        f"{before:.1f} MB",
        f"{(new - before) * each:.1f} KB",
        f"{(used - before) * each:.1f} KB",
        f"{took * 1000:.1f} ms",
    ]


if __name__ == "__main__":
    main()
