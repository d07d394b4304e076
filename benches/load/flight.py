#!/usr/bin/env python3
"""Many requests at once to one plugin: all are answered, and what they cost while they wait.

    python3 benches/load/flight.py [--requests 1000] [--wait 2000] [--bin target/release]

As many clients each send one request that the plugin answers after `--wait` milliseconds, so that all are in flight
together; the core is asked how many are, its memory is measured, and the answers are counted.
"""

import re
import resource
import selectors
import socket
import time
from collections import Counter

from common import Toru, arguments, headline, pss_mb


def in_flight(toru):
    found = re.search(r"(?m)^toru_plugin_in_flight\S* (\d+)$", toru.ask("/metrics"))
    return int(found.group(1)) if found else None


def main():
    parser, finish = arguments(__doc__, programs=())
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--wait", type=int, default=2000, help="ms")
    args = finish()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with Toru(args.bin, workers=1) as toru:
        host, port = toru.address.split(":")
        clients = [socket.create_connection((host, int(port))) for _ in range(args.requests)]
        time.sleep(0.5)
        before = pss_mb(toru.pid)
        request = f"GET /api/plugins/echo/delay/{args.wait} HTTP/1.1\r\nhost: toru\r\nconnection: close\r\n\r\n"
        began = time.monotonic()
        for client in clients:
            client.sendall(request.encode())
        sent = time.monotonic() - began
        time.sleep(args.wait / 2000)
        waiting, during = in_flight(toru), pss_mb(toru.pid)
        selector, answers = selectors.DefaultSelector(), {}
        for client in clients:
            client.setblocking(False)
            selector.register(client, selectors.EVENT_READ)
            answers[client] = b""
        while selector.get_map():
            ready = selector.select(timeout=args.wait / 1000 + 30)
            if not ready:
                break
            for key, _ in ready:
                piece = key.fileobj.recv(65536)
                answers[key.fileobj] += piece
                if not piece:
                    selector.unregister(key.fileobj)
        took = time.monotonic() - began
    statuses = Counter(answer[9:12].decode() or "none" for answer in answers.values())
    print(headline())
    print(f"requests                     {args.requests}, sent within {sent * 1000:.0f} ms")
    print(f"in flight at half time       {waiting}")
    print(f"answers by status            {dict(statuses)}")
    print(f"the last one after           {took * 1000:.0f} ms; each waits {args.wait} ms")
    print(f"memory of the core (PSS)     {before:.1f} MB before, {during:.1f} MB with all in flight")
    if statuses != {"200": args.requests}:
        raise SystemExit("not all are answered with 200")


if __name__ == "__main__":
    main()
