#!/usr/bin/env python3
"""Many idle plugins at once: how long they take to start and stop, and what the core costs meanwhile.

    python3 benches/load/plugins.py [--plugins 100] [--seconds 20] [--bin target/release]

Copies the echo plugin, starts a daemon in a temporary folder, waits until all run, watches it idle, stops it.
Needs `cargo build --release --workspace --bins` first.
"""

import argparse
import http.client
import os
import platform
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path


class Control(http.client.HTTPConnection):
    """HTTP over the control socket."""

    def __init__(self, path):
        super().__init__("toru")
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)


def ready(control):
    try:
        connection = Control(control)
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False


def running(control):
    connection = Control(control)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    return sum(line.endswith(" 1") for line in text.splitlines() if 'state="running"' in line)


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wakeups(pid):
    total = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        for line in status.read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                total += int(line.split()[1])
    return total


def pss_kib(pid):
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0


def wait_until(what, condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what}: not within {seconds} s")
        time.sleep(0.01)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plugins", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=20, help="how long to watch it idle")
    parser.add_argument("--bin", default="target/release")
    args = parser.parse_args()
    binaries = Path(args.bin).resolve()
    with tempfile.TemporaryDirectory(prefix="toru-", dir="/tmp") as folder:
        place = Path(folder)
        (place / "p").mkdir()
        for number in range(args.plugins):
            shutil.copy(binaries / "toru-plugin-echo", place / "p" / f"echo-{number}.binary")
        control = str(place / "c")
        flags = {"plugins-dir": "p", "socket-dir": "s", "log-dir": "l", "data-dir": "d"}
        command = [str(binaries / "toru"), "serve", "--listen", "127.0.0.1:0", "--control-socket", control]
        for flag, name in flags.items():
            command += [f"--{flag}", str(place / name)]
        began = time.monotonic()
        daemon = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_until("start", lambda: ready(control) and running(control) == args.plugins)
            started = time.monotonic() - began
            time.sleep(2)
            cpu, woken, watched = cpu_seconds(daemon.pid), wakeups(daemon.pid), time.monotonic()
            time.sleep(args.seconds)
            watched = time.monotonic() - watched
            cpu = (cpu_seconds(daemon.pid) - cpu) / watched * 100
            woken = (wakeups(daemon.pid) - woken) / watched
            memory = pss_kib(daemon.pid) / 1024
            began = time.monotonic()
            daemon.send_signal(signal.SIGTERM)
            code = daemon.wait(timeout=60)
            stopped = time.monotonic() - began
        finally:
            if daemon.poll() is None:
                daemon.kill()
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}")
    print(f"plugins                         {args.plugins}")
    print(f"start until all run             {started:.2f} s")
    print(f"CPU of the core, idle           {cpu:.2f} % of one core")
    print(f"wake-ups of the core, idle      {woken:.1f} a second")
    print(f"memory of the core (PSS), idle  {memory:.1f} MB")
    print(f"stop until all are gone         {stopped:.2f} s, exit code {code}")


if __name__ == "__main__":
    main()
