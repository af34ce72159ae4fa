"""Kill a benchmark run at random moments, again and again, and count what is lost.

    python -m tests.measurements.benchmark_kills 100

The run is the real one (embedded model, quick, latency). Before each answer is written down it is counted in
another file; after each kill there may be one more answer there than in the record. At the end the record
must hold each question of the plan once.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from edgemed_benchmarks.asks import key_of
from edgemed_benchmarks.journal import read_run

LONGEST_LIFE_SECONDS = 6.0
CHILD = """
import os, sys
from edgemed_benchmarks import cli, runner
counted = os.open(sys.argv[1], os.O_APPEND | os.O_CREAT | os.O_WRONLY)
ask_engine = runner.ask_engine
def count(*arguments):
    outcome = ask_engine(*arguments)
    os.write(counted, b"x")
    return outcome
runner.ask_engine = count
cli.main(sys.argv[2:])
"""


def main() -> None:
    """Print one line each 10 kills, then the sums."""
    kills, chance = int(sys.argv[1]), random.Random(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["EDGEMED_HOME"] = f"{folder}/home"
        torn, runs, record = 0, 0, Path(folder) / "run.jsonl"
        lost: list[int] = []
        before = b""
        while len(lost) < kills:
            counted = Path(folder) / f"answers-{len(lost)}-{runs}"
            written_before = record.read_bytes().count(b'"type":"sample"') if record.exists() else 0
            killed = _live(record, counted, chance.uniform(0, LONGEST_LIFE_SECONDS))
            if not record.exists() or not record.stat().st_size:
                record.unlink(missing_ok=True)
                lost.append(0)
                continue
            run = read_run(record)
            assert record.read_bytes().startswith(before[: before.rfind(b"\n") + 1]), "old lines changed"
            before = record.read_bytes()
            torn += run.torn_bytes > 0
            answers = counted.stat().st_size if counted.exists() else 0
            if killed:
                lost.append(answers - (len(run.samples) - written_before))
                if len(lost) % 10 == 0:
                    say(
                        f"{len(lost)} kills: lost {dict(Counter(lost))}, torn lines {torn}, whole runs {runs}"
                    )
            if run.end is not None:
                every = Counter(key_of(sample) for sample in run.samples if not sample.warm_up)
                assert set(every.values()) == {1}, "a question twice"
                runs += 1
                record.unlink()
                before = b""
        say(f"{kills} kills, answers lost at each: {dict(sorted(Counter(lost).items()))}")
        say(f"torn last lines: {torn}; runs that came to their end: {runs}, each question once")
        assert set(lost) <= {0, 1}


def say(text: str) -> None:
    """Write a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _live(record: Path, counted: Path, seconds: float) -> bool:
    """Let the run begin or go on for so long after its load; return whether it was killed."""
    command = ["run", "quick", "--suite", "latency", "--out", str(record), "--force", "--yes"]
    if record.exists():
        command = ["resume", str(record)]
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(counted), *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    # Of most lives the time begins with the first answer; of some with the start.
    waits = seconds < 0.8 * LONGEST_LIFE_SECONDS
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
        if waits and not (counted.exists() and counted.stat().st_size):
            deadline = time.monotonic() + seconds
    killed = process.poll() is None
    process.kill()
    process.wait()
    return killed


if __name__ == "__main__":
    main()
