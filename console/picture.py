#!/usr/bin/env python3
"""Draws console/picture.svg and console/detail.svg: the console over a real core, under tmux.

The core serves six plugins under load; one of them is in a crash loop from the start, and one is killed.
Needs tmux, and the binaries built: cargo build --workspace --bins
Run it as: console/picture.py [TARGET_FOLDER], by default target/debug. It takes about a minute and a half.
"""

import html
import http.client
import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import socket as socketlib
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
COLUMNS = 100
# The list leaves most of thirty rows empty, the detail does not.
ROWS, DETAIL_ROWS = 14, 28
# How long the load runs before the pictures: charts with something in them.
LOAD_SECONDS = 75
CELL_WIDTH, CELL_HEIGHT = 8.4, 18
# Of an ordinary dark terminal; sixteen colours are all that the console uses.
PALETTE = [
    "#1c1f26", "#e06c75", "#98c379", "#e5c07b", "#61afef", "#c678dd", "#56b6c2", "#d0d4dc",
    "#6b7280", "#ff7b86", "#b5e090", "#ffd88f", "#82c4ff", "#dd9bf0", "#7fd9e3", "#ffffff",
]
CRASHING = """#!/bin/sh
if [ "$1" = --metadata ]; then
  echo '{"id":"billing","name":"Billing","version":"2.3.1","icon":"x","route":"/billing","author":null}'
  exit 0
fi
echo 'cannot open ledger.db: disk I/O error' >&2
exit 3
"""


def rows_of_cells(screen):
    """Rows of characters of capture-pane -e with their colours and attributes, which go on from row to row."""
    foreground, background, bold, reverse, underline = None, None, False, False, False
    row = []
    for escape, character in re.findall(r"\x1b\[([0-9;]*)m|([^\x1b])", screen):
        if character == "\n":
            yield row
            row = []
            continue
        if character:
            row.append((character, foreground, background, bold, reverse, underline))
            continue
        codes = iter([int(code or 0) for code in escape.split(";")])
        for code in codes:
            if code in (38, 48):
                # 38;5;N: the console keeps to N below 16.
                next(codes)
                color = PALETTE[next(codes)]
                foreground, background = (color, background) if code == 38 else (foreground, color)
                continue
            if code == 0:
                foreground, background, bold, reverse, underline = None, None, False, False, False
            elif code == 1:
                bold = True
            elif code == 4:
                underline = True
            elif code == 7:
                reverse = True
            elif code == 39:
                foreground = None
            elif code == 49:
                background = None
            elif 30 <= code <= 37 or 90 <= code <= 97:
                foreground = PALETTE[code - 30 if code < 90 else code - 82]
            elif 40 <= code <= 47 or 100 <= code <= 107:
                background = PALETTE[code - 40 if code < 100 else code - 92]


# The part of its cell that a block fills from below; drawn as a rectangle, so that no font leaves gaps between them.
BLOCKS = {character: (eighth + 1) / 8 for eighth, character in enumerate("▁▂▃▄▅▆▇█")}


def svg(screen, rows):
    width, height = COLUMNS * CELL_WIDTH + 20, rows * CELL_HEIGHT + 20
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" font-size="14" '
        'font-family="ui-monospace, Menlo, Consolas, \'DejaVu Sans Mono\', monospace">',
        f'<rect width="100%" height="100%" rx="6" fill="{PALETTE[0]}"/>',
    ]
    for row, cells in enumerate(itertools.islice(rows_of_cells(screen), rows)):
        y = 10 + row * CELL_HEIGHT
        runs = []
        for column, (character, *style) in enumerate(cells):
            block = character in BLOCKS
            if runs and runs[-1][2] == style and not block and runs[-1][1] not in BLOCKS:
                runs[-1][1] += character
            else:
                runs.append([column, character, style])
        for column, text, (foreground, background, bold, reverse, underline) in runs:
            foreground, background = foreground or PALETTE[7], background or PALETTE[0]
            if reverse:
                foreground, background = background, foreground
            x, length = 10 + column * CELL_WIDTH, len(text) * CELL_WIDTH
            if background != PALETTE[0]:
                out.append(
                    f'<rect x="{x:.1f}" y="{y}" width="{length:.1f}" height="{CELL_HEIGHT}" fill="{background}"/>'
                )
            if not text.strip():
                continue
            if text in BLOCKS:
                part = BLOCKS[text] * CELL_HEIGHT
                out.append(
                    f'<rect x="{x:.1f}" y="{y + CELL_HEIGHT - part:.2f}" width="{length + 0.1:.1f}" height="{part:.2f}" '
                    f'fill="{foreground}"/>'
                )
                continue
            weight = ' font-weight="bold"' if bold else ""
            line_under = ' text-decoration="underline"' if underline else ""
            out.append(
                f'<text x="{x:.1f}" y="{y + 13.5}" textLength="{length:.1f}" lengthAdjust="spacingAndGlyphs" '
                f'xml:space="preserve" fill="{foreground}"{weight}{line_under}>{html.escape(text)}</text>'
            )
    out.append("</svg>\n")
    return "\n".join(out)


def load(address, stop):
    """A few requests, more to some plugins than to others, some of them errors."""
    connection = http.client.HTTPConnection(address, timeout=30)
    number = 0
    while not stop.is_set():
        number += 1
        for every, path in [
            (1, "shop/bytes/200"), (1, "shop/"), (2, "search/delay/3"), (5, "mail/"), (7, "mail/status/503"),
            (3, "reports/bytes/20000"), (4, "search/"),
        ]:
            if number % every == 0:
                connection.request("GET", f"/api/plugins/{path}")
                connection.getresponse().read()
        time.sleep(0.004 + 0.004 * (number // 150 % 3))


def control(socket, path):
    """The answer to a question over the control socket."""
    connection = http.client.HTTPConnection("toru", timeout=10)
    connection.sock = sock = socketlib.socket(socketlib.AF_UNIX)
    sock.connect(str(socket))
    connection.request("GET", path)
    return connection.getresponse().read()


def main():
    target = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else HERE.parent / "target/debug").resolve()
    with tempfile.TemporaryDirectory(prefix="tp", dir="/tmp") as folder:
        folder = pathlib.Path(folder)
        plugins = folder / "plugins"
        plugins.mkdir()
        for name in ["shop", "search", "mail", "reports", "backup"]:
            shutil.copy(target / "toru-plugin-echo", plugins / f"{name}.binary")
        (plugins / "billing.binary").write_text(CRASHING)
        (plugins / "billing.binary").chmod(0o755)
        socket = folder / "control.sock"
        daemon = subprocess.Popen(
            [target / "toru", "serve", "--listen", "127.0.0.1:0", "--plugins-dir", plugins, "--control-socket", socket,
             "--socket-dir", folder / "s", "--log-dir", folder / "log", "--data-dir", folder / "data"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        tmux = ["tmux", "-u", "-S", str(folder / "tmux")]
        stop = threading.Event()
        try:
            address = daemon.stdout.readline().strip().removeprefix("listening on http://")
            worker = threading.Thread(target=load, args=(address, stop))
            command = f"{target / 'toru-console'} --socket {socket}"
            environment = {key: value for key, value in os.environ.items() if key not in ("TMUX", "NO_COLOR")}
            environment["LC_ALL"] = "C.UTF-8"
            size = ["-x", str(COLUMNS), "-y", str(ROWS)]
            subprocess.run(
                [*tmux, "-f", "/dev/null", "new-session", "-d", *size, command], check=True, env=environment
            )

            def screen():
                capture = [*tmux, "capture-pane", "-p", "-e", "-N"]
                return subprocess.run(capture, check=True, capture_output=True, text=True).stdout

            def wait(what, condition, seconds=60):
                deadline = time.monotonic() + seconds
                while not condition(re.sub(r"\x1b\[[0-9;]*m", "", screen())):
                    if time.monotonic() > deadline:
                        raise SystemExit(f"waited {seconds} s for {what}; the screen was\n{screen()}")
                    time.sleep(0.1)

            worker.start()
            began = time.monotonic()
            wait("the list", lambda text: "search" in text)
            time.sleep(LOAD_SECONDS * 0.6)
            killed = json.loads(control(socket, "/api/plugins/search"))
            os.kill(killed["pid"], signal.SIGKILL)
            wait("the restart", lambda text: re.search(r"running +search +\S+ +1 ", text))
            time.sleep(max(0, LOAD_SECONDS - (time.monotonic() - began)))
            wait("the countdown", lambda text: "starts in" in text)
            (HERE / "picture.svg").write_text(svg(screen(), ROWS))
            subprocess.run([*tmux, "resize-window", "-x", str(COLUMNS), "-y", str(DETAIL_ROWS)], check=True)
            subprocess.run([*tmux, "send-keys", ":detail search", "Enter"], check=True)
            wait("the detail", lambda text: "Plugin search" in text and "now" in text and "killed by SIGKILL" in text)
            (HERE / "detail.svg").write_text(svg(screen(), DETAIL_ROWS))
        finally:
            stop.set()
            subprocess.run([*tmux, "kill-server"], check=False, stderr=subprocess.DEVNULL)
            daemon.terminate()
            daemon.wait()


if __name__ == "__main__":
    main()
