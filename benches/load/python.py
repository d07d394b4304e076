#!/usr/bin/env python3
"""A Python plugin behind Toru, against the same application under uvicorn behind nginx.

    python3 benches/load/python.py [--rounds 5] [--seconds 3] [--clients 64] [--bin target/release]

Needs `cargo build --release --workspace --bins`, wrk, nginx, and a Python with `uvicorn[standard]`, `fastapi` and
`orjson` (`--python`, by default the one that runs this). uvicorn uses uvloop and httptools there, the SDK uvloop and
orjson. One uvicorn process, one plugin process; nginx keeps connections to a Unix socket, without an access log.

All setups run at once and idle but for the one under load; rounds are interleaved, and only the ratios of one run
compare. CPU is user and system time of front and backend over the requests answered, from /proc.
"""

import argparse
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

BARE = """
import json

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    body = json.dumps({"hello": "world", "number": 1}, separators=(",", ":")).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": body})
"""

FASTAPI = """
from fastapi import FastAPI

app = FastAPI()

@app.get("/")
async def index():
    return {"hello": "world", "number": 1}
"""

NATIVE = """#!{python}
import sys
sys.path.insert(0, {sdk!r})
from toru_plugin import Plugin

plugin = Plugin(id="native", name="Native", version="1.0.0")

@plugin.get("/")
async def index(request, ctx):
    return {{"hello": "world", "number": 1}}

plugin.run()
"""

ADAPTED = """#!/bin/sh
cd {folder}
PYTHONPATH={sdk} exec {python} -m toru_plugin.asgi {name}:app --id {name} --root-path "" "$@"
"""

NGINX = """
{user}
worker_processes auto;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
    uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
    upstream bare {{ server unix:{folder}/bare.sock; keepalive 256; keepalive_requests 1000000000; }}
    upstream fastapi {{ server unix:{folder}/fastapi.sock; keepalive 256; keepalive_requests 1000000000; }}
    server {{
        listen 127.0.0.1:{port} reuseport;
        keepalive_requests 1000000000;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        location /bare/ {{ proxy_pass http://bare/; }}
        location /fastapi/ {{ proxy_pass http://fastapi/; }}
    }}
}}
"""


def cpu_seconds(pids):
    total = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        except FileNotFoundError:
            continue
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def tree(pid):
    """A process and all below it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += tree(int(child))
    return found


def wait_until(what, probe):
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            found = probe()
        except OSError:
            found = None
        if found:
            return found
        time.sleep(0.05)
    raise SystemExit(f"waited 30 s for {what}")


def answers(url):
    with urllib.request.urlopen(url, timeout=5) as answer:
        return json.load(answer) == {"hello": "world", "number": 1}


def load(url, clients, seconds, pids):
    """Requests a second, µs of CPU for each, p50 and p99 in ms."""
    before = cpu_seconds(pids)
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--latency", url]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    spent = cpu_seconds(pids) - before
    if "Non-2xx" in said or "Socket errors" in said:
        raise SystemExit(f"{url}: {said}")
    requests = int(re.search(r"(\d+) requests in", said)[1])
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", said)[1])
    units = {"us": 0.001, "ms": 1.0, "s": 1000.0}
    at = {p: float(n) * units[u] for p, n, u in re.findall(r"(\d+)%\s+([\d.]+)(us|ms|s)", said)}
    return rate, spent / requests * 1e6, at["50"], at["99"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--bin", type=Path, default=ROOT / "target/release")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--port", type=int, default=18099, help="for nginx")
    arguments = parser.parse_args()
    python = arguments.python
    for program in ("wrk", "nginx"):
        if shutil.which(program) is None:
            raise SystemExit(f"{program} is not installed")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        started = []

        def start(command, **more):
            process = subprocess.Popen([str(word) for word in command], **more)
            started.append(process)
            return process

        try:
            sdk = str(ROOT / "plugin-api/python/src")
            (folder / "bare.py").write_text(BARE)
            (folder / "fastapi_app.py").write_text(FASTAPI)
            plugins = folder / "plugins"
            plugins.mkdir()
            scripts = {
                "native": NATIVE.format(python=python, sdk=sdk),
                "bare": ADAPTED.format(folder=folder, sdk=sdk, python=python, name="bare"),
                "fastapi": ADAPTED.format(folder=folder, sdk=sdk, python=python, name="fastapi_app").replace(
                    "--id fastapi_app", "--id fastapi"
                ),
            }
            for name, text in scripts.items():
                path = plugins / f"{name}.binary"
                path.write_text(text)
                path.chmod(0o755)
            toru = start(
                [arguments.bin / "toru", "serve", "--listen", "127.0.0.1:0", "--plugins-dir", plugins]
                + ["--socket-dir", folder / "s", "--log-dir", folder / "l", "--data-dir", folder / "d"]
                + ["--control-socket", folder / "c.sock"],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={**os.environ, "XDG_CONFIG_HOME": str(folder)},
            )
            base = toru.stdout.readline().split()[-1]
            environment = {**os.environ, "PYTHONPATH": str(folder)}
            backends = {}
            for name, module in (("bare", "bare"), ("fastapi", "fastapi_app")):
                socket = folder / f"{name}.sock"
                backends[name] = start(
                    [python, "-m", "uvicorn", f"{module}:app", "--uds", socket, "--no-access-log"]
                    + ["--log-level", "warning"],
                    env=environment,
                )
                wait_until(name, socket.exists)
            # The workers must reach into a folder of mode 0700.
            user = "user root;" if os.geteuid() == 0 else ""
            (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=arguments.port, user=user))
            nginx = start(
                ["nginx", "-e", folder / "nginx.log", "-c", folder / "nginx.conf", "-g", "daemon off;"]
            )
            front = f"http://127.0.0.1:{arguments.port}"
            setups = {
                "SDK handler, Toru": (f"{base}/api/plugins/native/", toru, None),
                "bare ASGI, Toru": (f"{base}/api/plugins/bare/", toru, None),
                "bare ASGI, uvicorn, nginx": (f"{front}/bare/", nginx, backends["bare"]),
                "FastAPI, Toru": (f"{base}/api/plugins/fastapi/", toru, None),
                "FastAPI, uvicorn, nginx": (f"{front}/fastapi/", nginx, backends["fastapi"]),
            }
            for url, _, _ in setups.values():
                wait_until(url, lambda url=url: answers(url))
            measured = {name: [] for name in setups}
            for _ in range(arguments.rounds):
                for name, (url, first, second) in setups.items():
                    pids = tree(first.pid) + (tree(second.pid) if second else [])
                    measured[name].append(load(url, arguments.clients, arguments.seconds, pids))
            print(f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}, Python ", end="")
            print(subprocess.run([python, "-V"], capture_output=True, text=True).stdout.split()[1], end=", ")
            print(f"{arguments.clients} clients, {arguments.rounds} rounds of {arguments.seconds} s\n")
            print("| setup | req/s | CPU µs a request | p50 ms | p99 ms |\n| --- | --- | --- | --- | --- |")
            for name, rounds in measured.items():
                rate, cpu, p50, p99 = (statistics.median(column) for column in zip(*rounds))
                print(f"| {name} | {rate:.0f} | {cpu:.0f} | {p50:.1f} | {p99:.1f} |")
            print("\n| ratio of the medians over rounds | req/s | CPU |\n| --- | --- | --- |")
            for ours, theirs in (
                ("SDK handler, Toru", "bare ASGI, uvicorn, nginx"),
                ("bare ASGI, Toru", "bare ASGI, uvicorn, nginx"),
                ("FastAPI, Toru", "FastAPI, uvicorn, nginx"),
            ):
                pairs = list(zip(measured[ours], measured[theirs]))
                rate = statistics.median(a[0] / b[0] for a, b in pairs)
                cpu = statistics.median(a[1] / b[1] for a, b in pairs)
                print(f"| {ours} / {theirs} | {rate:.2f} | {cpu:.2f} |")
        finally:
            for process in reversed(started):
                process.send_signal(signal.SIGTERM)
            for process in started:
                process.wait()


if __name__ == "__main__":
    main()
