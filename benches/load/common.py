"""What the load scripts share: a daemon in a folder of its own, wrk, and what /proc says of processes.

Everything listens on ports and sockets of its own, and is ended by its process id.
"""

import argparse
import http.client
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

ROOT = Path(__file__).resolve().parent.parent.parent
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
# Where a program has another package's name.
PACKAGES = {"prlimit": "util-linux", "nm": "binutils", "uvicorn": "python3-uvicorn"}
ECHO_REQUEST = b"GET /api/plugins/echo/ HTTP/1.1\r\nhost: toru\r\n\r\n"


def arguments(doc, *binaries, programs=("wrk",)):
    """A parser that knows `--bin`, and what finishes it: checks that binaries and programs are there."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, default=ROOT / "target/release", help="where the binaries are")

    def finish():
        args = parser.parse_args()
        for program in programs:
            if shutil.which(program) is None:
                package = PACKAGES.get(program, program)
                raise SystemExit(f"{program} is not installed (Debian: apt-get install {package})")
        args.bin = args.bin.resolve()
        for name in ("toru", "toru-plugin-echo", *binaries):
            if not (args.bin / name).exists():
                raise SystemExit(f"{args.bin / name} is not there: cargo build --release --workspace --bins")
        return args

    return parser, finish


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(what, condition, seconds=60):
    """Until `condition` gives something true; gives that."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise SystemExit(f"{what}: not within {seconds} s")
        time.sleep(0.02)
    return found


def answers(base):
    """Whether a GET of `base` is a 200 now."""
    host, port = base.split("/")[2].split(":")
    path = "/" + base.split("/", 3)[3]
    try:
        with socket.create_connection((host, int(port)), timeout=2) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())
            return b" 200 " in connection.recv(4096)
    except OSError:
        return False


def ask(connection):
    """Sends the echo plugin a request; the status of its answer, which is read whole. OSError where it is cut short."""
    connection.sendall(ECHO_REQUEST)
    answer = b""

    def read():
        piece = connection.recv(65536)
        if not piece:
            raise OSError("closed early")
        return piece

    while b"\r\n\r\n" not in answer:
        answer += read()
    head, body = answer.split(b"\r\n\r\n", 1)
    length = int(re.search(rb"content-length: (\d+)", head).group(1))
    while len(body) < length:
        body += read()
    return int(head.split()[1])


def tree(pid):
    """The process and its descendants: threads other than the main one have children, too."""
    found = [pid]
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            found += tree(int(child))
    return found


def cpu_seconds(*pids):
    """User and system time of processes; of one that is gone, none."""
    ticks = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS_PER_SECOND


def wakeups(pid):
    """How often the threads of a process went to sleep and were woken."""
    total = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        total += int(re.search(r"(?m)^voluntary_ctxt_switches:\s+(\d+)", status.read_text()).group(1))
    return total


def pss_mb(*pids):
    total = 0
    for pid in pids:
        total += int(re.search(r"(?m)^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text()).group(1))
    return total / 1024


class Processes:
    """Processes that are ended, the last first, when the `with` is left."""

    def __init__(self):
        self.started, self.others = [], []

    def __enter__(self):
        return self

    def start(self, command, **options):
        options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **options}
        process = subprocess.Popen([str(word) for word in command], **options)
        self.started.append(process)
        return process

    def also(self, others):
        """Ends those, too."""
        self.others.append(others)

    def __exit__(self, *_):
        for others in reversed(self.others):
            others.__exit__()
        for process in reversed(self.started):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.started:
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Control(http.client.HTTPConnection):
    """HTTP over the control socket."""

    def __init__(self, path):
        super().__init__("toru", timeout=30)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self.path))


class Toru(Processes):
    """A daemon in a folder of its own, with copies of the echo plugin under `ids` and whatever `scripts` has.

    It is ready when all plugins run; `with` stops it.
    """

    def __init__(self, binaries, ids=("echo",), scripts=None, workers=None, driver=None, config="", place=None):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="toru-", dir=place or "/tmp")
        try:
            self._start(Path(self.folder.name), binaries, list(ids), scripts or {}, workers, driver, config)
        except BaseException:
            self.__exit__()
            raise

    def _start(self, place, binaries, ids, scripts, workers, driver, config):
        plugins = place / "p"
        plugins.mkdir()
        for name in ids:
            shutil.copy(binaries / "toru-plugin-echo", plugins / f"{name}.binary")
        for name, text in scripts.items():
            (plugins / f"{name}.binary").write_text(text)
            (plugins / f"{name}.binary").chmod(0o755)
        (place / "toru.toml").write_text(config)
        self.control = place / "c"
        command = [binaries / "toru", "serve", "--listen", "127.0.0.1:0", "--control-socket", self.control]
        command += ["--config", place / "toru.toml"]
        for flag, name in {"plugins-dir": "p", "socket-dir": "s", "log-dir": "l", "data-dir": "d"}.items():
            command += [f"--{flag}", place / name]
        for flag, value in {"workers": workers, "driver": driver}.items():
            if value is not None:
                command += [f"--{flag}", value]
        began = time.monotonic()
        said = place / "stderr"
        with said.open("w") as stderr:
            self.process = self.start(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
        self.pid = self.process.pid
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"toru ended at its start, exit code {self.process.wait()}: {said.read_text().strip()}")
        self.address = line.split()[-1].removeprefix("http://")
        wait_for("plugins", lambda: self.running() == len(ids) + len(scripts), 120)
        self.seconds_to_start = time.monotonic() - began

    def __exit__(self, *_):
        super().__exit__()
        self.folder.cleanup()

    def url(self, name="echo", path=""):
        return f"http://{self.address}/api/plugins/{name}/{path}"

    def ask(self, path):
        """The text of an answer on the control socket; empty where it is no 200."""
        try:
            connection = Control(self.control)
            connection.request("GET", path)
            answer = connection.getresponse()
            text = answer.read().decode()
        except OSError:
            return ""
        return text if answer.status == 200 else ""

    def running(self):
        """How many plugins run, once the core says that it is ready."""
        if not self.ask("/readyz"):
            return 0
        lines = self.ask("/metrics").splitlines()
        return sum(line.endswith(" 1") for line in lines if 'state="running"' in line)

    def processes(self):
        """The core and its plugins."""
        return tree(self.pid)


def microseconds(text):
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s|m|h)", text).groups()
    return float(number) * {"us": 1, "ms": 1e3, "s": 1e6, "m": 6e7, "h": 3.6e9}[unit]


def wrk_command(url, connections, seconds, script=None):
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"]
    return command + (["-s", str(script)] if script else []) + [url]


def wrk_result(text):
    """What wrk printed: requests, requests a second, latencies in µs, and what went wrong."""
    latency = {key: microseconds(value) for key, value in re.findall(r"(?m)^\s+(50|99)%\s+(\S+)", text)}
    count, elapsed = re.search(r"(\d+) requests in ([\d.]+)(?:s|m|h)", text).groups()
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text).group(1)
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    broken = re.search(r"Socket errors: (.*)", text)
    for wrong in (bad, broken):
        if wrong:
            print(f"  {wrong.group(0)}", file=sys.stderr)
    return {
        "requests": int(count),
        "per_second": float(rate),
        "p50_us": latency["50"],
        "p99_us": latency["99"],
        "not_2xx": int(bad.group(1)) if bad else 0,
        "socket_errors": broken.group(1) if broken else "",
    }


def posting(place, size):
    """A wrk script that posts so many bytes."""
    script = Path(place) / f"post-{size}.lua"
    script.write_text(
        f'wrk.method = "POST"\nwrk.body = string.rep("x", {size})\n'
        'wrk.headers["content-type"] = "application/octet-stream"\n'
    )
    return script


def wrk(url, connections, seconds, script=None, pids=()):
    """One run of wrk; with `pids`, also the CPU that these took per request, in µs."""
    before = cpu_seconds(*pids)
    command = wrk_command(url, connections, seconds, script)
    row = wrk_result(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    row["cpu_us"] = (cpu_seconds(*pids) - before) / max(row["requests"], 1) * 1e6
    return row


def median(rows, key):
    return statistics.median(row[key] for row in rows)


def machine():
    """Where and of what something was measured."""
    model = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    commit = subprocess.run(["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True)
    return {
        "cpu": model.group(1) if model else platform.machine(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
    }


def headline():
    about = machine()
    return f"{about['cpu']}, {about['cores']} cores, Linux {about['kernel']}, commit {about['commit']}, {about['date']}"
