#!/usr/bin/env python3
"""Which functions run in a daemon that nobody asks anything, written to runtime/order.ld, by which the linker puts them
side by side.

    python3 benches/load/order.py [--seconds 75] [--bin target/release]

The kernel maps 64 KiB of a program's file around each page that is touched, so code that is spread over the binary
costs many times its size in memory.
Starts a daemon with the echo plugin, asks it for something, and then has every thread of it run instruction by
instruction, for long enough that health checks and looks at processes are among what is seen.
What depends on the compiler in a function's name becomes a wildcard; a name that is gone matches nothing, so the list
may be old, and then only helps less.
Needs `cargo build --release --workspace --bins`, x86-64, nm (Debian: binutils), and to be allowed to trace a child.
"""

import bisect
import ctypes
import os
import re
import subprocess
import time

from common import ROOT, Toru, answers, arguments

TARGET = ROOT / "runtime/order.ld"

SEIZE, INTERRUPT, GETREGS, SINGLESTEP = 0x4206, 0x4207, 12, 9
WAIT_ALL = 0x40000000
# Of struct user_regs_struct on x86-64, in words.
REGISTERS, INSTRUCTION_POINTER = 27, 16

HEAD = """\
/* The functions that run in a daemon at rest, side by side: written by benches/load/order.py, which says why.
   For GNU ld and lld; a name that no longer exists matches nothing. */
SECTIONS
{
  .text.first :
  {
"""
TAIL = """\
  }
}
INSERT BEFORE .text;
"""

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def mapped_at(pid, binary):
    """Where the program lies in memory: its first address, and the one behind it."""
    ranges = []
    with open(f"/proc/{pid}/maps") as maps:
        for line in maps:
            if line.rstrip().endswith(str(binary)):
                ranges += [int(bound, 16) for bound in line.split()[0].split("-")]
    return min(ranges), max(ranges)


def step(pid, binary, seconds):
    """Addresses in the program at which any of its threads was, from the program's start on."""
    first, end = mapped_at(pid, binary)
    for thread in os.listdir(f"/proc/{pid}/task"):
        if libc.ptrace(SEIZE, int(thread), None, None) != 0:
            raise SystemExit(f"thread {thread} cannot be traced: {os.strerror(ctypes.get_errno())}")
        libc.ptrace(INTERRUPT, int(thread), None, None)
    registers = (ctypes.c_ulong * REGISTERS)()
    seen, until = set(), time.monotonic() + seconds
    while time.monotonic() < until:
        thread, status = os.waitpid(-1, WAIT_ALL | os.WNOHANG)
        if thread == 0:
            time.sleep(0.0001)
        elif os.WIFSTOPPED(status):
            if libc.ptrace(GETREGS, thread, None, ctypes.byref(registers)) == 0:
                at = registers[INSTRUCTION_POINTER]
                if first <= at < end:
                    seen.add(at - first)
            # Stops of the tracing itself are no signals of the program's.
            signal = os.WSTOPSIG(status)
            passed = 0 if signal == 5 or status >> 16 else signal
            libc.ptrace(SINGLESTEP, thread, None, passed)
    return seen


def end(pid):
    """Kills a traced process: each of its threads is reported to the tracer, and the process ends with the last."""
    os.kill(pid, 9)
    try:
        while True:
            os.waitpid(-1, WAIT_ALL)
    except ChildProcessError:
        pass


def functions(binary):
    """Address, length and name of each function, by address."""
    listed = subprocess.run(["nm", "-S", "--defined-only", binary], capture_output=True, text=True, check=True)
    rows = [line.split() for line in listed.stdout.splitlines()]
    return sorted((int(row[0], 16), int(row[1], 16), row[3]) for row in rows if len(row) == 4 and row[2] in "tT")


def pattern(name):
    """A function's name without what depends on the build: the hash at its end, or the numbers of its crates."""
    if name.startswith("_ZN"):
        return re.sub(r"17h[0-9a-f]{16}E.*$", "17h*", name)
    return re.sub(r"Cs[0-9A-Za-z]+_", "Cs*_", name)


def main():
    parser, finish = arguments(__doc__, programs=("nm",))
    parser.add_argument("--seconds", type=int, default=75)
    args = finish()
    binary = args.bin / "toru"
    known = functions(binary)
    starts = [address for address, _, _ in known]
    with Toru(args.bin, workers=1) as toru:
        for _ in range(20):
            answers(toru.url())
        seen = step(toru.pid, binary, args.seconds)
        end(toru.pid)
    ran = set()
    for at in seen:
        address, length, name = known[bisect.bisect(starts, at) - 1]
        if at < address + length:
            ran.add(name)
    patterns = sorted({pattern(name) for name in ran})
    lines = [f"    *(.text.{name} .text.unlikely.{name})\n" for name in patterns]
    TARGET.write_text(HEAD + "".join(lines) + TAIL)
    size = sum(length for _, length, name in known if name in ran)
    print(f"{len(ran)} functions, {size / 1024:.0f} KiB; their names are in {TARGET.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
