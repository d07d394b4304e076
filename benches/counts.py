#!/usr/bin/env python3
"""Instructions of the pure hot functions, beside those kept in benches/counts.txt, so that a change shows.

    python3 benches/counts.py [--bin target/fast] [--save]

Runs `bench-case` under valgrind's callgrind; a case's count is what 40 more runs of it take, so that the start of the
process is not in it. Nothing of the machine's load is in it either, but the compiler's version is, and what the
processor has: callgrind gives code that asks for it AVX2 at most.
Exit code 1: some count is more than 2 % off. `--save` keeps what was counted.
Needs valgrind (says so and stops where there is none), and `cargo build --profile fast -p toru-benches --bins`.

It is not gungraun, which needs a runner of just its own version installed beside, to do the same to a bench binary.
"""

import argparse
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
KEPT = HERE / "counts.txt"
FEW, MANY = 10, 50
TOLERANCE = 0.02


def instructions(binary, name, count):
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", str(binary), name, str(count)]
    said = subprocess.run(command, capture_output=True, text=True)
    found = re.search(r"Collected : (\d+)", said.stderr)
    if said.returncode != 0 or not found:
        raise SystemExit(f"{name}: {said.stderr}")
    return int(found.group(1))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, default=HERE.parent / "target/fast")
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    if shutil.which("valgrind") is None:
        print("skipped: no valgrind here (Debian: apt-get install valgrind)")
        return
    binary = args.bin / "bench-case"
    if not binary.exists():
        raise SystemExit(f"{binary} is not there: cargo build --profile fast -p toru-benches --bins")
    names = subprocess.run([str(binary)], capture_output=True, text=True, check=True).stdout.splitlines()
    with ThreadPoolExecutor(2) as pool:
        counts = dict(zip(names, pool.map(lambda name: round(
            (instructions(binary, name, MANY) - instructions(binary, name, FEW)) / (MANY - FEW)), names)))
    kept = {}
    if KEPT.exists():
        for line in KEPT.read_text().splitlines():
            if line and not line.startswith("#"):
                count, name = line.split(None, 1)
                kept[name] = int(count)
    off = 0
    print("| case | instructions | kept | change |\n| --- | --- | --- | --- |")
    for name in dict.fromkeys([*counts, *kept]):
        new, old = counts.get(name), kept.get(name)
        change = f"{new / old - 1:+.1%}" if new and old else "new" if new else "gone"
        off += not (new and old and abs(new / old - 1) <= TOLERANCE)
        print(f"| {name} | {new or ''} | {old or ''} | {change} |")
    if args.save:
        compiler = subprocess.run(["rustc", "--version"], capture_output=True, text=True).stdout.strip()
        lines = [f"# Instructions a run, by benches/counts.py --save; {compiler}, profile fast."]
        KEPT.write_text("\n".join(lines + [f"{count:>9} {name}" for name, count in counts.items()]) + "\n")
        print(f"\nkept in {KEPT.relative_to(HERE.parent)}")
    elif off:
        print(f"\n{off} of {len(counts)} differ by more than {TOLERANCE:.0%}: if that is meant, keep it with --save")
        sys.exit(1)


if __name__ == "__main__":
    main()
