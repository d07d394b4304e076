#!/usr/bin/env python3
"""Many open connections at rest: what each costs the core.

    python3 benches/load/idle.py [--connections 10000] [--driver auto] [--bin target/release]

Starts a daemon with one echo plugin in a temporary folder, opens the connections, and measures the core's memory when
they are new, and again when each has had a request answered.
What the kernel keeps for a socket is not the core's and not counted.
Needs `cargo build --release --workspace --bins` first.
"""

import argparse
import os
import platform
import re
import resource
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

REQUEST = b"GET /api/plugins/echo/ HTTP/1.1\r\nhost: toru\r\n\r\n"


def pss_kib(pid):
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0


def connect(address):
    connection = socket.create_connection(address)
    connection.settimeout(30)
    return connection


def ask(connection):
    """Sends a request and reads the whole answer; its status."""
    connection.sendall(REQUEST)
    answer = b""
    while b"\r\n\r\n" not in answer:
        piece = connection.recv(65536)
        if not piece:
            raise SystemExit("the core closed the connection")
        answer += piece
    head, body = answer.split(b"\r\n\r\n", 1)
    length = int(re.search(rb"content-length: (\d+)", head).group(1))
    while len(body) < length:
        body += connection.recv(65536)
    return int(head.split()[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--driver", default="auto")
    parser.add_argument("--bin", default="target/release")
    args = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    binaries = Path(args.bin).resolve()
    with tempfile.TemporaryDirectory(prefix="toru-", dir="/tmp") as folder:
        place = Path(folder)
        (place / "p").mkdir()
        shutil.copy(binaries / "toru-plugin-echo", place / "p" / "echo.binary")
        command = [str(binaries / "toru"), "serve", "--listen", "127.0.0.1:0", "--driver", args.driver]
        command += ["--config", str(place / "toru.toml"), "--control-socket", str(place / "c")]
        (place / "toru.toml").write_text("[http]\nidle_timeout_ms = 600000\n")
        for flag, name in {"plugins-dir": "p", "socket-dir": "s", "log-dir": "l", "data-dir": "d"}.items():
            command += [f"--{flag}", str(place / name)]
        daemon = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            port = int(re.search(r":(\d+)$", daemon.stdout.readline().strip()).group(1))
            address = ("127.0.0.1", port)
            first = connect(address)
            deadline = time.monotonic() + 30
            while ask(first) != 200:
                if time.monotonic() > deadline:
                    raise SystemExit("the plugin does not come up")
                time.sleep(0.05)
            before = pss_kib(daemon.pid)
            connections = [connect(address) for _ in range(args.connections)]
            # Answered after them, so they have been accepted.
            for _ in range(100):
                ask(connect(address))
            time.sleep(1)
            new = pss_kib(daemon.pid)
            for connection in connections:
                ask(connection)
            time.sleep(1)
            used = pss_kib(daemon.pid)
            began = time.monotonic()
            ask(connect(address))
            took = time.monotonic() - began
        finally:
            daemon.terminate()
            daemon.wait(timeout=60)
    each = 1024 / args.connections
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}, driver {args.driver}")
    print(f"connections                           {args.connections}")
    print(f"memory of the core (PSS) before       {before / 1024:.1f} MB")
    print(f"a new connection                      {(new - before) * each:.0f} bytes")
    print(f"a connection whose request is answered {(used - before) * each:.0f} bytes")
    print(f"a request on one more connection      {took * 1000:.1f} ms")


if __name__ == "__main__":
    main()
