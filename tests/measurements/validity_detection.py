"""Are real disturbances of a sample found, is a quiet machine left in peace, and what does watching cost?

    python -m tests.measurements.validity_detection all [--model MODEL] [--tries 40] [--idle 200]

Run it on a machine on which nothing else runs; `idle` says first whether it is one. Linux only. `memory` needs
root; it takes pages from a copy of the model alone. `clock` steps the clock that the watch reads; with
--set-the-real-clock (root) it sets the machine's clock by 2 s and back.
"""

import argparse
import contextlib
import ctypes
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
from edgemed_benchmarks.bandwidth import memory_bandwidth
from edgemed_benchmarks.canary import Canary
from edgemed_benchmarks.clock import Reading, SystemClock
from edgemed_benchmarks.telemetry import Telemetry
from edgemed_benchmarks.watch import Watch

from edgemed import paths
from edgemed.engine.client import ChildEngine
from edgemed.engine.messages import Answer, ChatMessage, Finished
from edgemed.models import find_model
from edgemed.records import Validity
from edgemed.session import open_session

QUESTION = "What is malaria, how is it treated, and when must a child with fever go to hospital?"
PROCESS_MADVISE, MADV_PAGEOUT = 440, 21
BUSY_PROGRAM = "while True: pass"
# Stops the process that started it, so that the watch itself stands still.
STOP_PARENT_PROGRAM = """
import os, signal, sys, time
print(flush=True)
sys.stdin.readline()
time.sleep(float(sys.argv[1]))
os.kill(os.getppid(), signal.SIGSTOP)
time.sleep(float(sys.argv[2]))
os.kill(os.getppid(), signal.SIGCONT)
"""


class Try(NamedTuple):
    """One sample and its verdict."""

    seconds: float
    rate: float
    """Generated tokens a second over the whole answer."""
    validity: Validity


class Bench:
    """One engine, watched; every sample is the same question."""

    def __init__(self, model: str | None, max_tokens: int) -> None:
        self.session = open_session(model)
        self.engine: ChildEngine = self.session.engine
        self.engine.wait_until_ready()
        self.max_tokens = max_tokens
        self.clock = SteppedClock()
        self.watch = Watch(clock=self.clock, canary=Canary())
        for _warm_up in range(2):
            self.ask()

    def ask(self) -> Answer:
        """Ask once."""
        messages = [*self.session.opening, ChatMessage("user", QUESTION)]
        events = self.engine.measure(messages, max_tokens=self.max_tokens, past_end=True, reuse="nothing")
        answers = [event.answer for event in events if isinstance(event, Finished)]
        return answers[-1]

    def watched(self) -> Try:
        """Ask once under the watch."""
        self.watch.start(self.engine.process_id)
        answer = self.ask()
        measured = answer.measurement
        assert measured is not None
        validity = self.watch.finish(
            wall_ns=measured.end_ns, engine_cpu_ns=measured.cpu_ns, threads=answer.threads
        )
        seconds = measured.end_ns / 1e9
        return Try(seconds, answer.generated_tokens / seconds, validity)

    def seconds(self) -> float:
        """Return how long an undisturbed sample takes."""
        return statistics.median(self.watched().seconds for _try in range(5))


class SteppedClock:
    """The system's clocks, of which somebody sets the wall clock."""

    def __init__(self) -> None:
        self._clock = SystemClock()
        self.step_ns = 0

    def read(self) -> Reading:
        """Read them."""
        reading = self._clock.read()
        return reading._replace(wall_ns=reading.wall_ns + self.step_ns)


def main() -> None:
    """Run the measurements asked for, one line of JSON each."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = ["idle", "hog", "stop", "stop_us", "clock", "memory", "cost", "bandwidth"]
    parser.add_argument("what", nargs="+", choices=[*names, "all"])
    parser.add_argument("--model", help="name or path; the embedded one if left out")
    parser.add_argument("--max-tokens", type=int, default=400)
    parser.add_argument("--tries", type=int, default=40)
    parser.add_argument("--idle", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set-the-real-clock", action="store_true")
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    chosen = names if "all" in arguments.what else arguments.what
    bench = Bench(arguments.model, arguments.max_tokens)
    _tell(
        "sample", {"seconds": round(bench.seconds(), 3), "canary_ms": bench.watch.canary.reference_ns / 1e6}
    )
    for name in chosen:
        MEASUREMENTS[name](bench, arguments)
    bench.engine.close()


# A quiet machine.


def idle(bench: Bench, arguments: argparse.Namespace) -> None:
    """Count false alarms, and tell how far each counter stays from its limit."""
    tries = [bench.watched() for _try in range(arguments.idle)]
    alarms = [one for one in tries if one.validity.verdict != "ok"]
    counters = [msgspec.structs.asdict(one.validity.counters) for one in tries]
    spread = {}
    for name in counters[0]:
        values = sorted(float(each[name]) for each in counters if each[name] is not None)
        if values and name not in ("available_memory_bytes", "frequency_hertz"):
            spread[name] = [round(values[int(share * (len(values) - 1))], 4) for share in (0, 0.5, 0.95, 1)]
    reasons = Counter(reason for one in alarms for reason in one.validity.reasons)
    _tell(
        "idle",
        {
            "samples": len(tries),
            "alarms": len(alarms),
            "invalid": sum(one.validity.verdict == "invalid" for one in tries),
            "reasons": dict(reasons),
            "smallest_median_p95_largest": spread,
        },
    )


# Disturbances.


def hog(bench: Bench, arguments: argparse.Namespace) -> None:
    """Let another program keep one core busy."""

    def disturbed() -> Try:
        with _process(BUSY_PROGRAM):
            time.sleep(0.3)
            return bench.watched()

    _detect("hog", "cpu_busy", disturbed, arguments.tries)


def stop(bench: Bench, arguments: argparse.Namespace) -> None:
    """Stop the engine for 0.2 to 1 s at some moment of the sample."""
    undisturbed = bench.seconds()

    def disturbed() -> Try:
        wait, stopped = random.uniform(0.05, 0.6) * undisturbed, random.uniform(0.2, 1.0)
        stopper = threading.Thread(target=_stop_process, args=(bench.engine.process_id, wait, stopped))
        stopper.start()
        result = bench.watched()
        stopper.join()
        return result

    _detect("stop", "suspended", disturbed, arguments.tries)


def stop_us(bench: Bench, arguments: argparse.Namespace) -> None:
    """Stop the watching process itself for 0.8 to 2 s, as Ctrl+Z does."""
    undisturbed = bench.seconds()

    def disturbed() -> Try:
        wait, stopped = random.uniform(0.05, 0.4) * undisturbed, random.uniform(0.8, 2.0)
        with _process(STOP_PARENT_PROGRAM, str(wait), str(stopped)) as stopper:
            assert stopper.stdin is not None
            assert stopper.stdout is not None
            stopper.stdout.readline()
            stopper.stdin.write(b"\n")
            stopper.stdin.flush()
            result = bench.watched()
            stopper.wait(10)
        return result

    _detect("stop_us", "suspended", disturbed, arguments.tries)


def clock(bench: Bench, arguments: argparse.Namespace) -> None:
    """Set the wall clock by 0.2 s to an hour, forward or back, in the middle of a sample."""

    def disturbed() -> Try:
        step_ns = int(random.choice((-1, 1)) * 10 ** random.uniform(-0.7, 3.5) * 1e9)
        if arguments.set_the_real_clock:
            step_ns = random.choice((-2, 2)) * 10**9
        setter = threading.Timer(0.05, _set_clock, (bench.clock, step_ns, arguments.set_the_real_clock))
        setter.start()
        result = bench.watched()
        setter.join()
        if arguments.set_the_real_clock:
            _set_clock(bench.clock, -step_ns, real=True)
        return result

    _detect("clock", "clock_step", disturbed, arguments.tries)


def memory(bench: Bench, arguments: argparse.Namespace) -> None:
    """Take the model's pages from the engine as a system short of memory does: the disk must give them again."""
    model = find_model(arguments.model)
    paths.data_folder().mkdir(parents=True, exist_ok=True)
    # A copy, for pages that two programs hold are not taken; not in a file system that lives in memory.
    with tempfile.TemporaryDirectory(dir=paths.data_folder()) as folder:
        for file in model.folder.iterdir():
            _copy_to_disk(file, Path(folder) / file.name)
        path = str(Path(folder) / model.path.name)
        other = Bench(path, arguments.max_tokens)
        other.watch = bench.watch

        def disturbed() -> Try:
            ended = threading.Event()
            taker = threading.Thread(target=_take_pages, args=(other.engine.process_id, path, ended))
            taker.start()
            result = other.watched()
            ended.set()
            taker.join()
            return result

        _detect("memory", "memory_pressure", disturbed, arguments.tries)
        other.engine.close()


def _detect(name: str, reason: str, disturbed: Callable[[], Try], tries: int) -> None:
    results = [disturbed() for _try in range(tries)]
    named = sum(reason in one.validity.reasons for one in results)
    _tell(
        name,
        {
            "tries": tries,
            "named": named,
            "not_ok": sum(one.validity.verdict != "ok" for one in results),
            "invalid": sum(one.validity.verdict == "invalid" for one in results),
            "reasons": dict(Counter(reason for one in results for reason in one.validity.reasons)),
            "median_seconds": round(statistics.median(one.seconds for one in results), 3),
            "missed": [
                msgspec.to_builtins(one.validity.counters)
                for one in results
                if reason not in one.validity.reasons
            ][:3],
        },
    )


# What watching costs.


def cost(bench: Bench, arguments: argparse.Namespace) -> None:
    """Compare answers with and without watch and telemetry, in ABBA order; and count the processor time."""
    rates: dict[bool, list[float]] = {True: [], False: []}
    pairs = []
    for block in range(arguments.tries):
        order = (False, True, True, False) if block % 2 == 0 else (True, False, False, True)
        these: dict[bool, list[float]] = {True: [], False: []}
        for watching in order:
            these[watching].append(_rate(bench, watching))
        pairs.append(statistics.mean(these[True]) / statistics.mean(these[False]))
        for watching in (True, False):
            rates[watching] += these[watching]
    draws = sorted(statistics.median(random.choices(pairs, k=len(pairs))) for _draw in range(2000))
    before, began = time.process_time(), time.perf_counter()
    with Telemetry(time.monotonic_ns, engine_process_id=lambda: bench.engine.process_id):
        bench.watch.start(bench.engine.process_id)
        time.sleep(10)
    elapsed = time.perf_counter() - began
    core_share = (time.process_time() - before) / elapsed
    bench.watch.finish(wall_ns=1, engine_cpu_ns=None, threads=0)
    _tell(
        "cost",
        {
            "tokens_per_second_without": round(statistics.median(rates[False]), 2),
            "tokens_per_second_with": round(statistics.median(rates[True]), 2),
            "median_ratio_of_blocks": round(statistics.median(pairs), 4),
            "interval": [round(draws[50], 4), round(draws[-51], 4)],
            "blocks": len(pairs),
            "share_of_one_core": round(core_share, 5),
        },
    )


def _rate(bench: Bench, watching: bool) -> float:
    if not watching:
        answer = bench.ask()
        assert answer.measurement is not None
        return answer.generated_tokens / answer.measurement.end_ns * 1e9
    with Telemetry(time.monotonic_ns, engine_process_id=lambda: bench.engine.process_id):
        return bench.watched().rate


def bandwidth(_bench: Bench, arguments: argparse.Namespace) -> None:
    """Measure memory bandwidth again and again."""
    seconds, rates = [], []
    for _try in range(max(3, arguments.tries // 4)):
        began = time.perf_counter()
        rate = memory_bandwidth()
        seconds.append(time.perf_counter() - began)
        rates.append(rate or 0.0)
    median = statistics.median(rates)
    _tell(
        "bandwidth",
        {
            "gigabytes_per_second": [round(rate / 1e9, 2) for rate in sorted(rates)],
            "largest_difference_from_median": round(max(abs(rate / median - 1) for rate in rates), 4),
            "longest_seconds": round(max(seconds), 2),
        },
    )


# Means of disturbing.


@contextlib.contextmanager
def _process(program: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def _stop_process(process_id: int, wait_seconds: float, stopped_seconds: float) -> None:
    time.sleep(wait_seconds)
    os.kill(process_id, signal.SIGSTOP)
    time.sleep(stopped_seconds)
    os.kill(process_id, signal.SIGCONT)


def _set_clock(clock: SteppedClock, step_ns: int, real: bool) -> None:
    if real:
        time.clock_settime_ns(time.CLOCK_REALTIME, time.time_ns() + step_ns)
    else:
        clock.step_ns += step_ns


def _copy_to_disk(source: Path, target: Path) -> None:
    shutil.copy(source, target)
    with target.open("rb+") as file:
        os.fsync(file.fileno())  # what is not on the disk yet cannot be taken from memory


def _take_pages(process_id: int, path: str, ended: threading.Event) -> None:
    """Take all pages of a mapped file from a process ten times a second, the way the kernel does it."""
    ranges = []
    for line in Path(f"/proc/{process_id}/maps").read_text(encoding="utf-8").splitlines():
        if line.endswith(path):
            start, end = (int(text, 16) for text in line.split()[0].split("-"))
            ranges.append((start, end - start))
    vector = (ctypes.c_size_t * (2 * len(ranges)))(*(number for pair in ranges for number in pair))
    descriptor = os.pidfd_open(process_id)
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    while not ended.wait(0.1):
        taken = call(PROCESS_MADVISE, descriptor, vector, ctypes.c_size_t(len(ranges)), MADV_PAGEOUT, 0)
        if taken < 0:
            raise OSError(ctypes.get_errno(), "process_madvise: Linux 5.10 or newer and root are needed")
    os.close(descriptor)


def _tell(name: str, figures: dict[str, object]) -> None:
    sys.stdout.write(json.dumps({name: figures}) + "\n")
    sys.stdout.flush()


MEASUREMENTS: dict[str, Callable[[Bench, argparse.Namespace], None]] = {
    "idle": idle,
    "hog": hog,
    "stop": stop,
    "stop_us": stop_us,
    "clock": clock,
    "memory": memory,
    "cost": cost,
    "bandwidth": bandwidth,
}

if __name__ == "__main__":
    main()
