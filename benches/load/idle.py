#!/usr/bin/env python3
"""Many open connections at rest: what each costs the core.

    python3 benches/load/idle.py [--connections 10000] [--driver auto] [--bin target/release]

Starts a daemon with one echo plugin in a temporary folder, opens the connections, and measures the core's memory when
they are new, and again when each has had a request answered.
What the kernel keeps for a socket is not the core's and not counted.
Needs `cargo build --release --workspace --bins` first.
"""

import resource
import socket
import time

from common import Toru, arguments, ask, headline, pss_mb


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
    parser.add_argument("--driver", default="auto")
    args = finish()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with Toru(args.bin, driver=args.driver, config="[http]\nidle_timeout_ms = 600000\n") as toru:
        host, port = toru.address.split(":")
        address = (host, int(port))
        check(connect(address))
        before = pss_mb(toru.pid)
        connections = [connect(address) for _ in range(args.connections)]
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
    each = 1024 * 1024 / args.connections
    print(f"{headline()}, driver {args.driver}")
    print(f"connections                           {args.connections}")
    print(f"memory of the core (PSS) before       {before:.1f} MB")
    print(f"a new connection                      {(new - before) * each:.0f} bytes")
    print(f"a connection whose request is answered {(used - before) * each:.0f} bytes")
    print(f"a request on one more connection      {took * 1000:.1f} ms")


if __name__ == "__main__":
    main()
