"""How long a folder of packs takes to read, and how much memory: synthetic packs of the greatest size.

    python -m tests.measurements.fleet_figures make FOLDER [--packs 1000] [--questions 150] [--tokens 200]
    python -m tests.measurements.fleet_figures read FOLDER [--rounds 3]

`read` starts a fresh process for each round and prints its seconds and peak memory. Each second machine misses
the limits and each fifth writes 25 % slower in its later run: what is found must be just these. Figures go to
docs/experiments.md. Linux only.
"""

import argparse
import gzip
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import msgspec
from edgemed_benchmarks.fleet import Fleet, fleet

SHA = "0123456789abcdef" * 4


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def make(folder: Path, packs: int, questions: int, tokens: int) -> None:
    """Write two runs for each of half as many machines."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(packs):
        machine, later = divmod(number, 2)
        data = b"\n".join(pack_lines(machine, bool(later), questions, tokens)) + b"\n"
        (folder / f"m{machine}-{later}.edgebench.json.gz").write_bytes(gzip.compress(data, 6))


def pack_lines(machine: int, later: bool, questions: int, tokens: int) -> list[bytes]:
    chance = random.Random(2 * machine + later)
    slow = 5.0 if machine % 2 else 1.0
    drift = 1.25 if later and machine % 5 == 0 else 1.0
    utc = "2026-11-20T02:30:00Z" if later else "2026-09-20T02:30:00Z"
    common = {"chain": "0" * 16, "at_ns": 0, "utc": utc}
    arm = {"label": "Q4_K_M", "model_name": "clinic-8m", "model_sha256": SHA, "size_bytes": 9}
    start = {"type": "run_start", "schema": "edgemed.bench/1", "run_id": f"{machine}-{later}", "arms": [arm]}
    lines = [
        start | common | {"edgemed_version": "1.0", "profile": "standard", "suites": ["latency"], "seq": 0},
        common | {"type": "machine", "seq": 1, "machine_id": f"m{machine}", "cpu_model": "Some CPU"},
    ]
    for item in range(questions):
        # To a tenth of a millisecond, as a thinned pack has them.
        token_ns = [round(2000 * drift * chance.gauss(1, 0.08)) * 100_000 for _ in range(tokens)]
        times = {"first_text_ns": round(2e9 * slow), "token_ns": token_ns, "end_ns": sum(token_ns)}
        lines.append(
            common
            | {
                "type": "sample",
                "seq": item + 2,
                "suite": "latency",
                "item_id": f"short-{item}",
                "arm": 0,
                "condition": "saved_prefix length:short",
                "prompt_sha256": SHA,
                "prompt_tokens": 90,
                "generated_tokens": tokens + 1,
                "times": times,
                "validity": {"verdict": "ok", "counters": {"cpu_efficiency": 0.97, "canary_ratio": 1.01}},
            }
        )
    return [msgspec.json.encode(line) for line in lines]


def found_as_made(found: Fleet, machines: int) -> bool:
    """Return whether just the machines that were made slow were found."""
    missing = {one.machine_id for one in found.machines if one.verdict == "no"}
    drifted = {one.machine_id for one in found.drifted}
    return missing == {f"m{number}" for number in range(1, machines, 2)} and drifted == {
        f"m{number}" for number in range(0, machines, 5)
    }


def read_once(folder: Path) -> None:
    before = time.perf_counter()
    found = fleet(folder)
    seconds = time.perf_counter() - before
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    say(
        f"{found.files} packs, {seconds:.1f} s, peak {peak_mib:.0f} MiB, {len(found.machines)} machines, "
        f"{len(found.drifted)} drifted, found as made: {found_as_made(found, len(found.machines))}"
    )


def main() -> None:
    """Make packs, or read them in fresh processes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["make", "read", "read-once"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--packs", type=int, default=1000)
    parser.add_argument("--questions", type=int, default=150)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.what == "make":
        make(options.folder, options.packs, options.questions, options.tokens)
        sizes = [path.stat().st_size for path in options.folder.iterdir()]
        say(f"{len(sizes)} packs, {sum(sizes) / 1e6:.0f} MB, the greatest {max(sizes) / 1000:.0f} kB")
    elif options.what == "read-once":
        read_once(options.folder)
    else:
        for _ in range(options.rounds):
            command = [sys.executable, "-m", "tests.measurements.fleet_figures", "read-once"]
            subprocess.run([*command, str(options.folder)], check=True)


if __name__ == "__main__":
    main()
