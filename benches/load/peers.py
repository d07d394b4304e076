#!/usr/bin/env python3
"""Toru beside nginx, HAProxy and Caddy, each in front of one process on a Unix socket, in one interleaved run.

    python3 benches/load/peers.py [--quick] [--seconds 2] [--rounds 5] [--backend raw|axum|both] [--bin target/release]
    python3 benches/load/peers.py --table [FILE]

Needs `cargo build --release --workspace --bins`, and wrk; peers that are not installed are named and left out.
Every front has one worker thread, keep-alive on both sides, and no access log.
Toru runs its defaults, with io_uring and with epoll; the peers proxy to `bench-peer backend`, the fastest backend we
could write, or with `--backend axum` to `bench-peer axum`, what people would write; `ceiling` is the same arrangement
as Toru's without any routing, checks or counters.
Each cell is measured `--rounds` times, all fronts in turn (A B A B), so that what the machine does meanwhile hits all
of them; the tables give medians, and ratios against the best of nginx and HAProxy in the same run.
CPU is user and system time of front and backend (or plugin) per request, from /proc, and of it the front's; memory is
PSS of each front at rest, started alone.
What is answered and posted is one letter many times, but for the 30 B, which are JSON: nothing of it is escaped.
Machine, kernel, commit, the command and the raw rows are kept in benches/runs/; `--table` prints the README's table
from such a file, by default the newest of all cells and fronts.
"""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, Processes, Toru, answers, arguments, cpu_seconds, free_port, headline, machine
from common import posting, pss_mb, tree, wait_for, wrk

RUNS = ROOT / "benches" / "runs"
PEERS = ["nginx", "haproxy", "caddy"]
FRONTS = ["toru io_uring", "toru epoll", *PEERS, "ceiling"]
CONNECTIONS = [1, 16, 64, 256]

# name: path of the request, bytes posted, connections
CELLS = [(f"30 B, c={c}", "", 0, c) for c in CONNECTIONS]
CELLS += [("1 KB answer, c=64", "bytes/1024", 0, 64), ("16 KB answer, c=64", "bytes/16384", 0, 64)]
CELLS += [("1 KB posted, c=64", "echo", 1024, 64), ("16 KB posted, c=64", "echo", 16384, 64)]
QUICK = ["30 B, c=1", "30 B, c=64", "16 KB answer, c=64"]

NGINX = """
daemon off; worker_processes 1; pid {place}/nginx.pid; error_log {place}/nginx.err; {user}
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000000; client_body_buffer_size 64k;
  client_body_temp_path {place}/nb; proxy_temp_path {place}/np; fastcgi_temp_path {place}/nf;
  uwsgi_temp_path {place}/nu; scgi_temp_path {place}/ns;
  upstream backend {{ server unix:{backend}; keepalive 512; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection ""; }}
  }}
}}
"""

HAPROXY = """
global
  nbthread 1
  maxconn 4096
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  http-reuse always
frontend front
  bind 127.0.0.1:{port}
  default_backend back
backend back
  server one unix@{backend}
"""

CADDY = """
{{
  admin off
  auto_https off
}}
http://127.0.0.1:{port} {{
  reverse_proxy unix/{backend}
}}
"""


class Front:
    """A running front: where it listens, the processes whose CPU counts, and those whose memory does."""

    def __init__(self, name, base, processes, own):
        self.name, self.base, self.processes, self.own = name, base, processes, own


def start_peer(name, place, backend, processes):
    place.mkdir()
    port = free_port()
    values = {"place": place, "backend": backend, "port": port}
    values["user"] = "user root;" if os.geteuid() == 0 else ""
    config = place / f"{name}.conf"
    text = {"nginx": NGINX, "haproxy": HAPROXY, "caddy": CADDY}[name]
    config.write_text(text.format(**values))
    command = {
        "nginx": ["nginx", "-p", place, "-c", config],
        "haproxy": ["haproxy", "-db", "-f", config],
        "caddy": ["caddy", "run", "--adapter", "caddyfile", "--config", config],
    }[name]
    process = processes.start(command, env=dict(os.environ, GOMAXPROCS="1", HOME=str(place)))
    base = f"http://127.0.0.1:{port}/"
    wait_for(name, lambda: answers(base), 20)
    return base, process.pid


def start_all(binaries, place, wanted, backends, processes):
    """Every front that can run here, and what is missing."""
    fronts, missing = [], []
    peer = binaries / "bench-peer"
    for driver in ["io_uring", "epoll"]:
        if f"toru {driver}" not in wanted:
            continue
        try:
            toru = Toru(binaries, workers=1, driver=driver)
        except SystemExit as error:
            missing.append(f"toru with {driver}: {error}")
            continue
        processes.also(toru)
        pid = toru.pid
        fronts.append(Front(f"toru {driver}", toru.url(), lambda pid=pid: tree(pid), lambda pid=pid: [pid]))
    for backend in backends:
        socket = place / f"{backend}.sock"
        verb, suffix = {"raw": ("backend", ""), "axum": ("axum", " + axum")}[backend]
        behind = processes.start([peer, verb, socket]).pid
        wait_for(f"backend {backend}", socket.exists, 20)
        for name in PEERS:
            if name not in wanted:
                continue
            try:
                base, pid = start_peer(name, place / f"{name}-{backend}", socket, processes)
            except SystemExit as error:
                missing.append(f"{name} did not start: {error}")
                continue
            pids = lambda pid=pid, behind=behind: tree(pid) + [behind]
            fronts.append(Front(name + suffix, base, pids, lambda pid=pid: tree(pid)))
    if "ceiling" in wanted:
        link, port = place / "link.sock", free_port()
        plugin = processes.start([peer, "plugin", link])
        wait_for("ceiling", link.exists, 20)
        front = processes.start([peer, "front", f"127.0.0.1:{port}", link])
        base = f"http://127.0.0.1:{port}/"
        wait_for("ceiling", lambda: answers(base), 20)
        fronts.append(Front("ceiling", base, lambda: [plugin.pid, front.pid], lambda: [front.pid]))
    return fronts, missing


def at_rest(binaries, place, wanted, backends):
    """PSS of each front in MB, each started alone: pages that two fronts share would count half for each.

    Taken after some requests and eight quiet seconds: what a start needs for a moment is given back by then.
    """
    memory = {}
    for name in wanted:
        own = place / name.replace(" ", "-")
        own.mkdir()
        with Processes() as processes:
            for front in start_all(binaries, own, [name], backends[:1], processes)[0]:
                for _ in range(20):
                    answers(front.base)
                time.sleep(8)
                memory[front.name] = pss_mb(*front.own())
    return memory


def measure(front, cell, seconds, place):
    name, path, posted, connections = cell
    script = posting(place, posted) if posted else None
    own, before = front.own(), cpu_seconds(*front.own())
    row = wrk(front.base + path, connections, seconds, script, front.processes())
    row["front_cpu_us"] = (cpu_seconds(*own) - before) / max(row["requests"], 1) * 1e6
    return {"front": front.name, "cell": name, **row}


def version(name):
    flag = {"nginx": "-v", "haproxy": "-v", "caddy": "version"}[name]
    out = subprocess.run([name, flag], capture_output=True, text=True)
    return (out.stdout or out.stderr).splitlines()[0]


class Rows:
    """What was measured, by cell and front."""

    def __init__(self, rows):
        self.rows = rows
        self.cells = list(dict.fromkeys(row["cell"] for row in rows))
        self.fronts = list(dict.fromkeys(row["front"] for row in rows))

    def of(self, cell, front, key):
        return [row[key] for row in self.rows if row["cell"] == cell and row["front"] == front]

    def median(self, cell, front, key):
        found = self.of(cell, front, key)
        return statistics.median(found) if found else None

    def best(self, cell, rivals, key, choose):
        return choose((value for name in rivals if (value := self.median(cell, name, key))), default=None)


def ratio(value, base):
    return f"{value / base:.2f}" if value and base else ""


def table(rows, rivals):
    """Medians by cell, with ratios against the best of `rivals`."""
    lines = ["| | front | req/s (min to max) | against the best | p50 µs | p99 µs | against "]
    lines[0] += "| CPU µs/req (the front's) | against |"
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for cell in rows.cells:
        best = rows.best(cell, rivals, "per_second", max)
        calm = rows.best(cell, rivals, "p99_us", min)
        thrifty = rows.best(cell, rivals, "cpu_us", min)
        for front in rows.fronts:
            spread = rows.of(cell, front, "per_second")
            if not spread:
                continue
            rate, p50, p99, cpu, own = (
                rows.median(cell, front, key) for key in ("per_second", "p50_us", "p99_us", "cpu_us", "front_cpu_us")
            )
            lines.append(
                f"| {cell} | {front} | {rate:,.0f} ({min(spread):,.0f} to {max(spread):,.0f}) | {ratio(rate, best)} "
                f"| {p50:,.0f} | {p99:,.0f} | {ratio(p99, calm)} | {cpu:.1f} ({own:.1f}) | {ratio(cpu, thrifty)} |"
            )
    return "\n".join(lines)


def newest_run():
    """The newest stored run of all cells and fronts."""
    runs = [(json.loads(path.read_text()), path) for path in RUNS.glob("peers-*.json")]
    whole = [(run["machine"]["date"], path) for run, path in runs if is_whole(run["rows"])]
    if not whole:
        raise SystemExit(f"no run of all cells and fronts is stored in {RUNS}: peers.py stores one")
    return max(whole)[1]


def is_whole(rows):
    """Whether these are of everything that the README's table shows."""
    found = Rows(rows)
    return set(found.cells) == {cell[0] for cell in CELLS} and set(found.fronts) >= set(FRONTS)


def readme_table(path):
    """The README's table: a line for each cell, and what it was measured with."""
    run = json.loads(path.read_text())
    rows, about = Rows(run["rows"]), run["machine"]
    rivals = [name for name in ("nginx", "haproxy") if name in rows.fronts]
    ours = "toru io_uring"
    # In front of the fastest backend alone: the other one is kinder to us.
    shown = [name for name in rows.fronts if name != ours and not name.endswith("axum")]
    against = f"toru against the better of {' and '.join(rivals)}"
    lines = [f"| requests a second | **toru** | {' | '.join(shown)} | {against} |"]
    lines.append("| --- |" + " --- |" * (len(shown) + 2))
    for cell in rows.cells:
        rates = [rows.median(cell, name, "per_second") for name in [ours] + shown]
        cells = [f"{rate:,.0f}".replace(",", " ") if rate else "" for rate in rates]
        against = ratio(rates[0], rows.best(cell, rivals, "per_second", max))
        lines.append(f"| {cell} | **{cells[0]}** | {' | '.join(cells[1:])} | {against} |")
    for key, what, form in (("p99_us", "p99, µs", ",.0f"), ("cpu_us", "CPU a request, µs", ".1f")):
        for cell in ("30 B, c=1", "30 B, c=64"):
            values = [rows.median(cell, name, key) for name in [ours] + shown]
            cells = [format(value, form).replace(",", " ") if value else "" for value in values]
            against = ratio(values[0], rows.best(cell, rivals, key, min))
            lines.append(f"| {what}: {cell} | **{cells[0]}** | {' | '.join(cells[1:])} | {against} |")
    memory = [run["memory_mb"].get(name) for name in [ours] + shown]
    cells = [f"{value:.1f}" if value else "" for value in memory]
    least = min((run["memory_mb"][name] for name in rivals), default=None)
    lines.append(
        f"| memory at rest, MB (PSS) | **{cells[0]}** | {' | '.join(cells[1:])} | {ratio(memory[0], least)} |"
    )
    # Caddy gives its number alone.
    named = [said if name in said.lower() else f"{name} {said}" for name, said in about["versions"].items()]
    versions = ", ".join(named)
    lines += [
        "",
        f"{about['cpu']}, {about['cores']} cores, Linux {about['kernel']}, commit {about['commit']}, "
        f"{about['date'][:10]}; {versions}; medians of {run['rounds']} rounds of {run['seconds']} s; "
        f"raw rows in `{path.relative_to(ROOT)}`.",
    ]
    return "\n".join(lines)


def main():
    parser, finish = arguments(__doc__, "bench-peer")
    parser.add_argument("--seconds", type=int, default=2, help="of load for each cell and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="three cells instead of all")
    parser.add_argument("--fronts", default=",".join(FRONTS), help="of these, with commas between them")
    parser.add_argument("--backend", choices=["raw", "axum", "both"], default="raw", help="behind the peers")
    if "--table" in sys.argv[1:]:
        rest = [word for word in sys.argv[1:] if word != "--table"]
        print(readme_table(Path(rest[0]).resolve() if rest else newest_run()))
        return
    args = finish()
    cells = [cell for cell in CELLS if not args.quick or cell[0] in QUICK]
    backends = ["raw", "axum"] if args.backend == "both" else [args.backend]
    wanted = args.fronts.split(",")
    if unknown := [name for name in wanted if name not in FRONTS]:
        raise SystemExit(f"--fronts: {', '.join(unknown)}: known are {', '.join(FRONTS)}")
    for name in wanted:
        if name in PEERS and shutil.which(name) is None:
            print(f"left out: {name}: not installed (Debian: apt-get install {name})", file=sys.stderr)
    wanted = [name for name in wanted if name not in PEERS or shutil.which(name)]
    if not wanted:
        raise SystemExit("nothing is left to be measured")
    with tempfile.TemporaryDirectory(prefix="toru-", dir="/tmp") as folder, Processes() as processes:
        place, rows = Path(folder), []
        memory = at_rest(args.bin, place, wanted, backends)
        fronts, missing = start_all(args.bin, place, wanted, backends, processes)
        for line in missing:
            print(f"left out: {line}", file=sys.stderr)
        if not fronts:
            raise SystemExit("nothing is left to be measured")
        for front in fronts:
            wrk(front.base, 16, 1)
        total = len(cells) * args.rounds * len(fronts)
        for cell in cells:
            # The ceiling answers every request alike.
            able = [front for front in fronts if front.name != "ceiling" or (cell[1] == "" and not cell[2])]
            for round_number in range(args.rounds):
                for front in able:
                    rows.append({"round": round_number, **measure(front, cell, args.seconds, place)})
                    print(f"\r{len(rows)} of at most {total}: {cell[0]}, {front.name}   ", end="", file=sys.stderr)
        print(file=sys.stderr)
    versions = {name: version(name) for name in PEERS if shutil.which(name)}
    print(headline())
    print("; ".join(versions.values()))
    print(f"{args.rounds} rounds of {args.seconds} s a cell")
    for backend in backends:
        suffix = {"raw": "", "axum": " + axum"}[backend]
        print(f"\nagainst nginx{suffix} and haproxy{suffix}:\n")
        print(table(Rows(rows), [f"nginx{suffix}", f"haproxy{suffix}"]))
    print("\n| at rest | memory of the front (PSS) |\n| --- | --- |")
    for name, megabytes in memory.items():
        print(f"| {name} | {megabytes:.1f} MB |")
    RUNS.mkdir(exist_ok=True)
    about = {**machine(), "versions": versions}
    minute = re.sub(r"\D", "", about["date"])[:12]
    target = RUNS / f"peers-{minute}-{about['commit']}.json"
    body = {"machine": about, "command": sys.argv[1:], "seconds": args.seconds, "rounds": args.rounds}
    body |= {"memory_mb": memory, "rows": rows}
    target.write_text(json.dumps(body, indent=1, ensure_ascii=False) + "\n")
    print(f"\nkept in {target.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
