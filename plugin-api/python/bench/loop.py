"""Requests a second of a plugin on this package, over a bare Unix socket: no core, no HTTP.

    python3 bench/loop.py [--seconds 3] [--in-flight 64] [--connections 1] [--handler inline] [--repeat 3]

One client process keeps `in-flight` requests on the way on each connection and sends the next ones when answers come.
Prints requests a second and the plugin's own CPU time for each request; only figures of one run compare.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import selectors
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).resolve().parent.parent / "src"


def plugin_main(kind: str) -> None:
    sys.path.insert(0, str(SOURCE))
    from toru_plugin import Context, Plugin, Request, asgi, wsgi

    plugin = Plugin(id="bench", name="Bench", version="1")

    if kind == "asgi":

        async def app(scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
            body = json.dumps({"hello": "world", "number": 1}, separators=(",", ":")).encode()
            headers = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})

        asgi.mount(plugin, lambda: app)

    elif kind == "wsgi":

        def wsgi_app(environ: wsgi.Environ, start_response: Any) -> list[bytes]:
            body = json.dumps({"hello": "world", "number": 1}, separators=(",", ":")).encode()
            start_response("200 OK", [("content-type", "application/json")])
            return [body]

        wsgi.mount(plugin, lambda: wsgi_app)

    elif kind == "inline":

        @plugin.get("/items")
        async def inline(request: Request, ctx: Context) -> object:
            return {"hello": "world", "number": 1}

    elif kind == "task":

        @plugin.get("/items")
        async def task(request: Request, ctx: Context) -> object:
            await asyncio.sleep(0)
            return {"hello": "world", "number": 1}

    else:

        @plugin.get("/items")
        def thread(request: Request, ctx: Context) -> object:
            return {"hello": "world", "number": 1}

    plugin.run([])


def frame(number: int) -> bytes:
    inner = (
        '{"method":"GET","path":"/items","headers":{"host":"localhost:3000","accept":"*/*"},"body":null,'
        '"remote_addr":"127.0.0.1:51234","timeout_ms":30000}'
    )
    message = (
        f'{{"type":"http","timestamp":"2026-01-01T00:00:00.000Z","request_id":"{number:08d}",'
        f'"payload":{{"type":"http","request_id":"{number:08d}","payload":{inner}}}}}'
    ).encode()
    return struct.pack(">I", len(message)) + message


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def connect(path: str) -> socket.socket:
    end = time.monotonic() + 10
    while True:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            client.connect(path)
            return client
        except OSError:
            client.close()
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


def run(kind: str, seconds: float, connections: int, in_flight: int) -> tuple[float, float]:
    """Requests a second, and microseconds of the plugin's CPU for each."""
    requests = [frame(number) for number in range(in_flight)]
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "p.sock")
        environment = {**os.environ, "TORU_PLUGIN_SOCKET": path}
        process = subprocess.Popen([sys.executable, __file__, "--plugin", kind], env=environment)
        selector = selectors.DefaultSelector()
        try:
            for _ in range(connections):
                client = connect(path)
                selector.register(client, selectors.EVENT_READ, bytearray())
                client.sendall(b"".join(requests))
            answers = 0
            began = time.monotonic()
            cpu = cpu_seconds(process.pid)
            while time.monotonic() - began < seconds:
                for key, _ in selector.select():
                    client = key.fileobj  # type: ignore[assignment]
                    buffer: bytearray = key.data
                    buffer += client.recv(1 << 18)
                    count = 0
                    at = 0
                    while len(buffer) - at >= 4:
                        stop = at + 4 + int.from_bytes(buffer[at : at + 4], "big")
                        if stop > len(buffer):
                            break
                        at = stop
                        count += 1
                    del buffer[:at]
                    answers += count
                    client.sendall(b"".join(requests[:count]))
            elapsed = time.monotonic() - began
            return answers / elapsed, (cpu_seconds(process.pid) - cpu) / answers * 1e6
        finally:
            for key in list(selector.get_map().values()):
                key.fileobj.close()  # type: ignore[union-attr]
            selector.close()
            process.terminate()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--handler", choices=("inline", "task", "thread", "asgi", "wsgi"), default="inline")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--plugin", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plugin:
        plugin_main(arguments.plugin)
        return
    rates: list[float] = []
    costs: list[float] = []
    for _ in range(arguments.repeat):
        rate, cost = run(arguments.handler, arguments.seconds, arguments.connections, arguments.in_flight)
        rates.append(rate)
        costs.append(cost)
    print(
        f"{arguments.handler}: {statistics.median(rates):.0f} req/s ({min(rates):.0f} to {max(rates):.0f}), "
        f"{statistics.median(costs):.1f} µs of CPU each"
    )


if __name__ == "__main__":
    main()
