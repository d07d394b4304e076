#!/usr/bin/env python3
"""Toru beside nginx, HAProxy and Caddy, each in front of one process on a Unix socket, in one interleaved run.

    python3 benches/load/peers.py [--quick] [--seconds 3] [--rounds 3] [--bin target/release] [--save]

Needs `cargo build --release --workspace --bins`, and wrk; peers that are not installed are named and left out.
Every front has one worker thread, keep-alive on both sides, and no access log.
Toru runs its defaults, with io_uring and with epoll; the peers proxy to `bench-peer backend`, the fastest backend we
could write; `ceiling` is the same arrangement as Toru's without any routing, checks or counters.
Each cell is measured `--rounds` times, all fronts in turn (A B A B), so that what the machine does meanwhile hits all
of them; the tables give medians, and ratios against the best of nginx and HAProxy in the same run.
CPU is user and system time of front and backend (or plugin) per request, from /proc; memory is PSS of the front at rest.
`--save` keeps machine, kernel, commit and the raw rows in benches/runs/.
"""

import argparse
import json
import os
import platform
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PEERS = ["nginx", "haproxy", "caddy"]
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
  persist_config off
}}
http://127.0.0.1:{port} {{
  reverse_proxy unix/{backend}
}}
"""


class Front:
    """A running front: where it listens, the processes whose CPU counts, and those whose memory does."""

    def __init__(self, name, base, processes, own):
        self.name, self.base, self.processes, self.own = name, base, processes, own


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def tree(pid):
    """The process and its descendants: threads other than the main one have children, too."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += tree(int(child))
    return found


def cpu_seconds(pids):
    total = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def pss_mb(pids):
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


def spawn(started, command, **options):
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
    started.append(process)
    return process


def wait_for(what, condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what}: not there within {seconds} s")
        time.sleep(0.02)


def answers(base):
    host, port = base.split("/")[2].split(":")
    path = "/" + base.split("/", 3)[3]
    try:
        with socket.create_connection((host, int(port)), timeout=2) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())
            return b" 200 " in connection.recv(4096)
    except OSError:
        return False


def start_peer(name, place, backend, started):
    port = free_port()
    values = {"place": place, "backend": backend, "port": port}
    values["user"] = "user root;" if os.geteuid() == 0 else ""
    config = place / f"{name}.conf"
    text = {"nginx": NGINX, "haproxy": HAPROXY, "caddy": CADDY}[name]
    config.write_text(text.format(**values))
    command = {
        "nginx": ["nginx", "-p", str(place), "-c", str(config)],
        "haproxy": ["haproxy", "-db", "-f", str(config)],
        "caddy": ["caddy", "run", "--adapter", "caddyfile", "--config", str(config)],
    }[name]
    environment = dict(os.environ, GOMAXPROCS="1", HOME=str(place))
    process = spawn(started, command, env=environment)
    base = f"http://127.0.0.1:{port}/"
    wait_for(name, lambda: answers(base))
    return base, process


def start_toru(driver, binaries, place, started, extra=()):
    home = place / driver
    (home / "p").mkdir(parents=True)
    shutil.copy(binaries / "toru-plugin-echo", home / "p" / "echo.binary")
    command = [str(binaries / "toru"), "serve", "--listen", "127.0.0.1:0", "--workers", "1", "--driver", driver]
    command += ["--control-socket", str(home / "c")]
    for flag, name in {"plugins-dir": "p", "socket-dir": "s", "log-dir": "l", "data-dir": "d"}.items():
        command += [f"--{flag}", str(home / name)]
    process = subprocess.Popen(command + list(extra), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    started.append(process)
    base = process.stdout.readline().split()[-1] + "/api/plugins/echo/"
    wait_for(f"toru ({driver})", lambda: answers(base))
    return base, process


def start_all(binaries, place, wanted):
    """Every front that can run here, and what to end afterwards."""
    started, fronts, missing = [], [], []
    backend = str(place / "backend.sock")
    peer = str(binaries / "bench-peer")
    backend_process = spawn(started, [peer, "backend", backend])
    wait_for("backend", lambda: os.path.exists(backend))
    for driver in ["io_uring", "epoll"]:
        if f"toru {driver}" not in wanted:
            continue
        try:
            base, process = start_toru(driver, binaries, place, started)
            fronts.append(Front(f"toru {driver}", base, lambda pid=process.pid: tree(pid), lambda pid=process.pid: [pid]))
        except (IndexError, SystemExit) as error:
            missing.append(f"toru with {driver}: {error}")
    for name in PEERS:
        if name not in wanted:
            continue
        if shutil.which(name) is None:
            missing.append(f"{name}: not installed")
            continue
        base, process = start_peer(name, place, backend, started)
        pids = lambda pid=process.pid: tree(pid) + [backend_process.pid]
        fronts.append(Front(name, base, pids, lambda pid=process.pid: tree(pid)))
    if "ceiling" in wanted:
        link, port = str(place / "link.sock"), free_port()
        plugin = spawn(started, [peer, "plugin", link])
        wait_for("ceiling", lambda: os.path.exists(link))
        front = spawn(started, [peer, "front", f"127.0.0.1:{port}", link])
        base = f"http://127.0.0.1:{port}/"
        wait_for("ceiling", lambda: answers(base))
        fronts.append(Front("ceiling", base, lambda: [plugin.pid, front.pid], lambda: [front.pid]))
    return started, fronts, missing


def microseconds(text):
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text).groups()
    return float(number) * {"us": 1, "ms": 1e3, "s": 1e6, "m": 6e7}[unit]


def wrk(url, connections, seconds, posted, place):
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"]
    if posted:
        script = place / f"post-{posted}.lua"
        script.write_text(
            f'wrk.method = "POST"\nwrk.body = string.rep("x", {posted})\n'
            'wrk.headers["content-type"] = "application/octet-stream"\n'
        )
        command += ["-s", str(script)]
    text = subprocess.run(command + [url], capture_output=True, text=True, check=True).stdout
    latency = {key: microseconds(value) for key, value in re.findall(r"(?m)^\s+(50|99)%\s+(\S+)", text)}
    count, elapsed = re.search(r"(\d+) requests in ([\d.]+)s", text).groups()
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    broken = re.search(r"Socket errors: (.*)", text)
    if bad or broken:
        print(f"  {url}: {(bad or broken).group(0)}", file=sys.stderr)
    return {
        "requests": int(count),
        "per_second": int(count) / float(elapsed),
        "p50_us": latency["50"],
        "p99_us": latency["99"],
        "not_2xx": int(bad.group(1)) if bad else 0,
    }


def measure(front, cell, seconds, place):
    name, path, posted, connections = cell
    before = cpu_seconds(front.processes())
    row = wrk(front.base + path, connections, seconds, posted, place)
    used = cpu_seconds(front.processes()) - before
    row.update(front=front.name, cell=name, cpu_us=used / max(row["requests"], 1) * 1e6)
    return row


def machine():
    model = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    commit = subprocess.run(["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True)
    return {
        "cpu": model.group(1) if model else platform.machine(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
        "versions": {name: version(name) for name in PEERS if shutil.which(name)},
    }


def version(name):
    flag = {"nginx": "-v", "haproxy": "-v", "caddy": "version"}[name]
    out = subprocess.run([name, flag], capture_output=True, text=True)
    return (out.stdout or out.stderr).splitlines()[0]


def table(rows, cells, fronts):
    """Medians by cell, with ratios against the best of nginx and HAProxy."""
    of = lambda cell, front, key: [row[key] for row in rows if row["cell"] == cell and row["front"] == front]
    median = lambda cell, front, key: statistics.median(of(cell, front, key) or [0])
    lines = ["| | front | req/s (min to max) | against the best | p50 µs | p99 µs | against | CPU µs/req | against |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for cell, *_ in cells:
        rivals = [name for name in ("nginx", "haproxy") if of(cell, name, "per_second")]
        best = max((median(cell, name, "per_second") for name in rivals), default=0)
        calm = min((median(cell, name, "p99_us") for name in rivals), default=0)
        thrifty = min((median(cell, name, "cpu_us") for name in rivals), default=0)
        for front in fronts:
            if not of(cell, front, "per_second"):
                continue
            rate, p99, cpu = (median(cell, front, key) for key in ("per_second", "p99_us", "cpu_us"))
            spread = of(cell, front, "per_second")
            against = lambda value, base: f"{value / base:.2f}" if base else ""
            lines.append(
                f"| {cell} | {front} | {rate:,.0f} ({min(spread):,.0f} to {max(spread):,.0f}) | {against(rate, best)} "
                f"| {median(cell, front, 'p50_us'):,.0f} | {p99:,.0f} | {against(p99, calm)} "
                f"| {cpu:.1f} | {against(cpu, thrifty)} |"
            )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=3, help="of load for each cell and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="three cells instead of all")
    parser.add_argument("--fronts", default="toru io_uring,toru epoll,nginx,haproxy,caddy,ceiling")
    parser.add_argument("--bin", default="target/release")
    parser.add_argument("--save", action="store_true", help="keep the rows in benches/runs/")
    args = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed: it makes the load (Debian: apt-get install wrk)")
    binaries = Path(args.bin).resolve()
    for name in ["toru", "toru-plugin-echo", "bench-peer"]:
        if not (binaries / name).exists():
            raise SystemExit(f"{binaries / name} is not there: cargo build --release --workspace --bins")
    cells = [cell for cell in CELLS if not args.quick or cell[0] in QUICK]
    with tempfile.TemporaryDirectory(prefix="toru-", dir="/tmp") as folder:
        place = Path(folder)
        started, rows = [], []
        try:
            started, fronts, missing = start_all(binaries, place, args.fronts.split(","))
            for line in missing:
                print(f"left out: {line}", file=sys.stderr)
            time.sleep(1)
            memory = {front.name: pss_mb(front.own()) for front in fronts}
            for front in fronts:
                wrk(front.base, 16, 1, 0, place)
            total = len(cells) * args.rounds * len(fronts)
            for cell in cells:
                # The ceiling answers every request alike.
                able = [front for front in fronts if front.name != "ceiling" or (cell[1] == "" and not cell[2])]
                for round_number in range(args.rounds):
                    for front in able:
                        row = measure(front, cell, args.seconds, place)
                        row["round"] = round_number
                        rows.append(row)
                        print(f"\r{len(rows)} of at most {total}: {cell[0]}, {front.name}   ", end="", file=sys.stderr)
            print(file=sys.stderr)
        finally:
            for process in reversed(started):
                process.send_signal(signal.SIGTERM)
            for process in started:
                try:
                    process.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    process.kill()
    about = machine()
    print(f"{about['cpu']}, {about['cores']} cores, Linux {about['kernel']}, commit {about['commit']}, {about['date']}")
    print("; ".join(about["versions"].values()))
    print(f"{args.rounds} rounds of {args.seconds} s a cell\n")
    names = [front.name for front in fronts]
    print(table(rows, cells, names))
    print("\n| at rest | memory of the front (PSS) |\n| --- | --- |")
    for name, megabytes in memory.items():
        print(f"| {name} | {megabytes:.1f} MB |")
    if args.save:
        runs = ROOT / "benches" / "runs"
        runs.mkdir(exist_ok=True)
        target = runs / f"peers-{time.strftime('%Y-%m-%d', time.gmtime())}-{about['commit']}.json"
        body = {"machine": about, "seconds": args.seconds, "rounds": args.rounds, "memory_mb": memory, "rows": rows}
        target.write_text(json.dumps(body, indent=1, ensure_ascii=False) + "\n")
        print(f"\nkept in {target.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
