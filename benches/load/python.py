#!/usr/bin/env python3
"""A Python plugin behind Toru, against the same application under uvicorn behind nginx.

    python3 benches/load/python.py [--rounds 5] [--seconds 3] [--clients 64] [--bin target/release]

Needs `cargo build --release --workspace --bins`, wrk, nginx, and a Python with `uvicorn[standard]`, `fastapi` and
`orjson` (`--python`, by default the one that runs this). uvicorn uses uvloop and httptools there, the SDK uvloop and
orjson. One uvicorn process, one plugin process; nginx keeps connections to a Unix socket, without an access log.

All setups run at once and idle but for the one under load; rounds are interleaved, and only the ratios of one run
compare. CPU is user and system time of front and backend over the requests answered, from /proc.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from common import ROOT, Processes, Toru, arguments, free_port, headline, tree, wait_for, wrk

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


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return json.load(answer) == {"hello": "world", "number": 1}
    except OSError:
        return False


def load(url, clients, seconds, pids):
    """Requests a second, µs of CPU for each, p50 and p99 in ms."""
    row = wrk(url, clients, seconds, pids=pids)
    if row["not_2xx"] or row["socket_errors"]:
        raise SystemExit(f"{url}: {row}")
    return row["per_second"], row["cpu_us"], row["p50_us"] / 1000, row["p99_us"] / 1000


def main():
    parser, finish = arguments(__doc__, programs=("wrk", "nginx"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--python", default=sys.executable)
    args = finish()
    python, sdk = args.python, str(ROOT / "plugin-api/python/src")
    needed = "import fastapi, httptools, orjson, uvicorn, uvloop"
    if subprocess.run([python, "-c", needed], capture_output=True).returncode != 0:
        raise SystemExit(f'{python} lacks a module: {python} -m pip install "uvicorn[standard]" fastapi orjson')
    with tempfile.TemporaryDirectory(prefix="toru-", dir="/tmp") as folder, Processes() as processes:
        folder, port = Path(folder), free_port()
        (folder / "bare.py").write_text(BARE)
        (folder / "fastapi_app.py").write_text(FASTAPI)
        adapted = lambda name: ADAPTED.format(folder=folder, sdk=sdk, python=python, name=name)
        scripts = {
            "native": NATIVE.format(python=python, sdk=sdk),
            "bare": adapted("bare"),
            "fastapi": adapted("fastapi_app").replace("--id fastapi_app", "--id fastapi"),
        }
        toru = Toru(args.bin, ids=(), scripts=scripts)
        processes.also(toru)
        backends = {}
        for name, module in (("bare", "bare"), ("fastapi", "fastapi_app")):
            socket = folder / f"{name}.sock"
            backends[name] = processes.start(
                [python, "-m", "uvicorn", f"{module}:app", "--uds", socket, "--no-access-log"]
                + ["--log-level", "warning"],
                env={**os.environ, "PYTHONPATH": str(folder)},
            )
            wait_for(name, socket.exists)
        # The workers must reach into a folder of mode 0700.
        user = "user root;" if os.geteuid() == 0 else ""
        (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port, user=user))
        nginx = processes.start(
            ["nginx", "-e", folder / "nginx.log", "-c", folder / "nginx.conf", "-g", "daemon off;"]
        )
        front = f"http://127.0.0.1:{port}"
        setups = {
            "SDK handler, Toru": (toru.url("native"), toru, None),
            "bare ASGI, Toru": (toru.url("bare"), toru, None),
            "bare ASGI, uvicorn, nginx": (f"{front}/bare/", nginx, backends["bare"]),
            "FastAPI, Toru": (toru.url("fastapi"), toru, None),
            "FastAPI, uvicorn, nginx": (f"{front}/fastapi/", nginx, backends["fastapi"]),
        }
        for url, _, _ in setups.values():
            wait_for(url, lambda url=url: answers(url))
        measured = {name: [] for name in setups}
        for _ in range(args.rounds):
            for name, (url, first, second) in setups.items():
                pids = tree(first.pid) + (tree(second.pid) if second else [])
                measured[name].append(load(url, args.clients, args.seconds, pids))
    version = subprocess.run([python, "-V"], capture_output=True, text=True).stdout.strip()
    print(f"{headline()}; {version}, {args.clients} clients, {args.rounds} rounds of {args.seconds} s\n")
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


if __name__ == "__main__":
    main()
