#!/usr/bin/env python3
"""What the console sends to its terminal: bytes a second at rest and busy, which a slow line has to carry.

    python3 benches/load/console.py [--plugins 100] [--seconds 30] [--size 80x24] [--bin target/release]

Copies the echo plugin, starts a daemon in a temporary folder and the console on a pseudo-terminal over it, and counts
the bytes that come out of the terminal's other end: first with idle plugins, then while all of them are asked in turn,
then on a plugin's log that gets 50 lines a second. Besides, the bytes a second that a recording grows by.
Also counts how often the console draws (a synchronized update each), its CPU and memory, and what the core spends on
its one reader. Needs `cargo build --release --workspace --bins` first.
"""

import fcntl
import http.client
import os
import pty
import select
import signal
import struct
import termios
import threading
import time
from pathlib import Path

from common import Toru, arguments, cpu_seconds, headline, pss_mb

FRAME = b"\x1b[?2026h"


class Console:
    """The console on a pseudo-terminal, and what it has sent."""

    def __init__(self, binary, control, columns, rows, *flags):
        self.sent, self.frames = 0, 0
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.environ.update(TERM="xterm-256color", LC_ALL="C.UTF-8")
            os.environ.pop("NO_COLOR", None)
            # Its first picture already has the right size.
            fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            os.execv(binary, [binary, "--socket", control, *flags])

    def read(self, seconds):
        """Reads for so long; gives bytes and frames."""
        sent, frames, until = 0, 0, time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if select.select([self.terminal], [], [], left)[0]:
                data = os.read(self.terminal, 65536)
                sent += len(data)
                frames += data.count(FRAME)
        return sent, frames

    def press(self, keys):
        os.write(self.terminal, keys)

    def quit(self):
        self.press(b"q")
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            # What it still writes must be taken, or it waits.
            if select.select([self.terminal], [], [], 0.1)[0]:
                try:
                    os.read(self.terminal, 65536)
                except OSError:
                    pass
            if os.waitpid(self.pid, os.WNOHANG)[0]:
                return
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise SystemExit("the console did not end")


def load(address, plugins, rate, stop, asked):
    """Asks all plugins in turn, `rate` times a second in all."""
    connection = http.client.HTTPConnection(address, timeout=30)
    due = time.monotonic()
    while not stop.is_set():
        number = asked[0]
        asked[0] += 1
        path = "/" if number % 20 else "/status/503"
        connection.request("GET", f"/api/plugins/echo-{number * 7 % plugins}{path}")
        connection.getresponse().read()
        due += 1 / rate
        time.sleep(max(0, due - time.monotonic()))


def fail(address, rate, stop):
    """Asks one plugin for errors, which are a line of its log each."""
    connection = http.client.HTTPConnection(address, timeout=30)
    due = time.monotonic()
    while not stop.is_set():
        connection.request("GET", "/api/plugins/echo-0/status/503")
        connection.getresponse().read()
        due += 1 / rate
        time.sleep(max(0, due - time.monotonic()))


def main():
    parser, finish = arguments(__doc__, "toru-console", programs=())
    parser.add_argument("--plugins", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=30, help="of each phase")
    parser.add_argument("--size", default="80x24", help="columns x rows")
    parser.add_argument("--rate", type=float, default=1000, help="requests a second while busy")
    parser.add_argument("--lines", type=float, default=50, help="lines a second of the log")
    args = finish()
    columns, rows = map(int, args.size.split("x"))
    with Toru(args.bin, [f"echo-{number}" for number in range(args.plugins)]) as toru:
        stop, asked = threading.Event(), [0]
        print(headline())
        print(f"{args.plugins} plugins, {args.size}, {args.seconds:.0f} s each")
        try:
            recording = Path(toru.folder.name) / "recording"
            flags = ["--record", str(recording)]
            console = Console(str(args.bin / "toru-console"), str(toru.control), columns, rows, *flags)

            def phase(name):
                kept = recording.stat().st_size
                before = cpu_seconds(console.pid), cpu_seconds(toru.pid), asked[0]
                sent, frames = console.read(args.seconds)
                after = cpu_seconds(console.pid), cpu_seconds(toru.pid), asked[0]
                kept = (recording.stat().st_size - kept) / args.seconds
                cpu, core = ((b - a) / args.seconds * 100 for a, b in zip(before[:2], after[:2]))
                print(
                    f"{name:<22}{sent / args.seconds:8.0f} bytes/s {frames / args.seconds:5.1f} frames/s "
                    f"{(after[2] - before[2]) / args.seconds:6.0f} req/s   console {cpu:.1f} % "
                    f"{pss_mb(console.pid):.1f} MB, core {core:.1f} %, recording {kept / 1000:.1f} kB/s"
                )

            sent, _ = console.read(2)
            print(f"{'first two seconds':<22}{sent:8} bytes")
            phase("list, at rest")
            console.press(b"\r")
            console.read(1)
            phase("detail, at rest")
            console.press(b"\x1b")
            worker = threading.Thread(target=load, args=(toru.address, args.plugins, args.rate, stop, asked))
            worker.start()
            # Until the latencies are those of the load.
            console.read(12)
            phase("list, busy")
            console.press(b"R")
            console.read(1)
            phase("list by req/s, busy")
            console.press(b"\r")
            console.read(1)
            phase("detail, busy")
            stop.set()
            worker.join()
            console.press(b"\x1b")
            console.read(1)
            console.press(b":logs echo-0\r")
            stop.clear()
            worker = threading.Thread(target=fail, args=(toru.address, args.lines, stop))
            worker.start()
            # Until the screen is full of lines.
            console.read(2)
            phase(f"log, {args.lines:.0f} lines/s")
            console.quit()
        finally:
            stop.set()


if __name__ == "__main__":
    main()
