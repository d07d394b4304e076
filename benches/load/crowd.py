#!/usr/bin/env python3
"""A crowd that connects at once: what a new client, and one that is served already, wait meanwhile.

    python3 benches/load/crowd.py [--connections 10000] [--nofile 4096] [--silent] [--driver auto] [--rounds 3]

Starts a daemon with one echo plugin under a limit of open files, has all clients of the crowd connect at once and ask
(or, with --silent, say nothing), and meanwhile measures from another process: each 10 ms a request on a new connection,
answered or told 503, and one on a connection that was there before.
Overflows are connections that the kernel dropped because too many waited to be accepted; such a client tries again
after a second.
"""

import errno
import multiprocessing
import resource
import select
import socket
import time
from pathlib import Path

from common import ECHO_REQUEST, Toru, arguments, ask, cpu_seconds, headline


def probe(address, ready, finished, results):
    old = socket.create_connection(address)
    ask(old)
    new_ms, old_ms, statuses = [], [], {}
    ready.set()
    while not finished.is_set():
        began = time.monotonic()
        try:
            with socket.create_connection(address, timeout=30) as connection:
                status = ask(connection)
        except OSError as error:
            status = errno.errorcode.get(error.errno, str(error))
        new_ms.append((time.monotonic() - began) * 1000)
        statuses[status] = statuses.get(status, 0) + 1
        began = time.monotonic()
        ask(old)
        old_ms.append((time.monotonic() - began) * 1000)
        time.sleep(0.01)
    results.put((new_ms, old_ms, statuses))


def overflows():
    names, values = [line.split() for line in Path("/proc/net/netstat").read_text().splitlines()[:2]]
    return int(dict(zip(names, values))["ListenOverflows"])


def crowd(address, count, silent):
    """Connects them all; gives how many were answered how, and the seconds until the last was."""
    poller = select.epoll()
    clients = {}
    began = time.monotonic()
    for _ in range(count):
        client = socket.socket()
        client.setblocking(False)
        client.connect_ex(address)
        clients[client.fileno()] = client
        poller.register(client, select.EPOLLOUT)
    told, waiting = {}, set(clients)
    while waiting:
        events = poller.poll(2)
        if not events:
            break
        for descriptor, what in events:
            client = clients[descriptor]
            if what & select.EPOLLOUT and not what & select.EPOLLIN:
                poller.modify(client, select.EPOLLIN)
                try:
                    if not silent:
                        client.send(ECHO_REQUEST)
                    continue
                except OSError:
                    # It was told, or dropped, before; the read says which.
                    pass
            try:
                answer = client.recv(4096)
                status = int(answer.split()[1]) if answer else "closed"
            except BlockingIOError:
                continue
            except OSError as error:
                status = errno.errorcode.get(error.errno, "error")
            told[descriptor] = status
            waiting.discard(descriptor)
            poller.unregister(client)
    seconds = time.monotonic() - began
    counts = {}
    for status in told.values():
        counts[status] = counts.get(status, 0) + 1
    if waiting:
        counts["nothing"] = len(waiting)
    return counts, seconds, list(clients.values())


class Bounded(Toru):
    """A daemon that may have so many descriptors."""

    nofile = 0

    def start(self, command, **options):
        return super().start(["prlimit", f"--nofile={self.nofile}", *command], **options)


def main():
    parser, finish = arguments(__doc__, programs=("prlimit",))
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--nofile", type=int, default=4096)
    parser.add_argument("--silent", action="store_true")
    parser.add_argument("--driver", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    args = finish()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    Bounded.nofile = args.nofile
    print(f"{headline()}, driver {args.driver}, {args.connections} connections, {args.nofile} descriptors")
    for _ in range(args.rounds):
        with Bounded(args.bin, driver=args.driver) as toru:
            host, port = toru.address.split(":")
            address = (host, int(port))
            ready, finished = multiprocessing.Event(), multiprocessing.Event()
            results = multiprocessing.Queue()
            prober = multiprocessing.Process(target=probe, args=(address, ready, finished, results))
            prober.start()
            ready.wait()
            before, cpu = overflows(), cpu_seconds(toru.pid)
            counts, seconds, clients = crowd(address, args.connections, args.silent)
            finished.set()
            new_ms, old_ms, statuses = results.get()
            prober.join()
            print(
                f"crowd {counts} in {seconds:.2f} s, {overflows() - before} overflows; "
                f"a new request at worst {max(new_ms):.0f} ms of {len(new_ms)} {statuses}, "
                f"one on an old connection {max(old_ms):.0f} ms; "
                f"CPU of the core {cpu_seconds(toru.pid) - cpu:.2f} s"
            )
            for client in clients:
                client.close()


if __name__ == "__main__":
    main()
