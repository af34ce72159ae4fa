"""Is a sample to be trusted? Verdicts on injected counters, and a watch on clocks and processes of our own.

What real disturbances do is measured by tests/measurements/validity_detection.py.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from edgemed_benchmarks.canary import Canary
from edgemed_benchmarks.clock import Reading, SystemClock, passed
from edgemed_benchmarks.validity import Circumstances, judge
from edgemed_benchmarks.watch import Watch

from edgemed import machine_counters
from edgemed.machine import CpuSeconds, ProcessCounters
from edgemed.records import Counters

SECOND = 1_000_000_000
MIB = 2**20
FOUR_CORES = Circumstances(wall_ns=10 * SECOND, cpus=4, total_memory_bytes=8000 * MIB)

# Verdicts.


def test_an_undisturbed_sample_is_ok() -> None:
    counters = Counters(
        other_cpu_share=0.02,
        steal_share=0.0,
        pressure_cpu_share=0.05,
        pressure_memory_share=0.0,
        major_faults=3,
        swapped_in_bytes=4096,
        swapped_out_bytes=0,
        throttle_events=0,
        undervoltage=False,
        canary_ratio=1.04,
        cpu_efficiency=0.93,
        available_memory_bytes=900 * MIB,
    )
    assert judge(counters, FOUR_CORES).verdict == "ok"


def test_a_system_that_counts_nothing_condemns_nothing() -> None:
    assert judge(Counters(), FOUR_CORES).verdict == "ok"


@pytest.mark.parametrize(
    ("counters", "reason", "verdict"),
    [
        (Counters(other_cpu_share=0.1), "cpu_busy", "suspect"),
        (Counters(other_cpu_share=0.25), "cpu_busy", "invalid"),
        (Counters(pressure_cpu_share=0.7), "cpu_busy", "invalid"),
        (Counters(steal_share=0.08), "stolen", "suspect"),
        (Counters(steal_share=0.3), "stolen", "invalid"),
        (Counters(major_faults=60), "memory_pressure", "suspect"),
        (Counters(major_faults=600), "memory_pressure", "invalid"),
        (Counters(pressure_memory_share=0.2), "memory_pressure", "invalid"),
        (Counters(available_memory_bytes=100 * MIB), "memory_pressure", "suspect"),
        (Counters(swapped_in_bytes=30 * MIB), "swapping", "suspect"),
        (Counters(swapped_out_bytes=200 * MIB), "swapping", "invalid"),
        (Counters(throttle_events=2), "throttled", "suspect"),
        (Counters(undervoltage=True), "undervoltage", "suspect"),
        (Counters(canary_ratio=1.4), "slow_canary", "suspect"),
        (Counters(canary_ratio=2.5), "slow_canary", "invalid"),
        (Counters(suspended_ns=SECOND // 10), "suspended", "suspect"),
        (Counters(suspended_ns=SECOND), "suspended", "invalid"),
        (Counters(clock_step_ns=-3 * SECOND), "clock_step", "suspect"),
        (Counters(cpu_efficiency=0.4), "low_cpu_efficiency", "suspect"),
        (Counters(cpu_efficiency=0.03), "low_cpu_efficiency", "invalid"),
    ],
)
def test_each_disturbance_has_its_name_and_its_weight(counters: Counters, reason: str, verdict: str) -> None:
    found = judge(counters, FOUR_CORES)
    assert (found.reasons, found.verdict) == ([reason], verdict)


def test_the_worst_of_several_reasons_decides_and_all_are_named() -> None:
    found = judge(Counters(throttle_events=1, other_cpu_share=0.5, suspended_ns=0), FOUR_CORES)
    assert (found.reasons, found.verdict) == (["cpu_busy", "throttled"], "invalid")


def test_a_dead_engine_makes_a_sample_invalid() -> None:
    found = judge(Counters(), FOUR_CORES._replace(engine_died=True))
    assert (found.reasons, found.verdict) == (["engine_died"], "invalid")


def test_a_neighbour_on_the_host_slows_the_canary_and_not_the_answers() -> None:
    """A shared virtual machine called 18 % of its idle samples suspect, and they were as fast as the others."""
    virtual = FOUR_CORES._replace(virtual_machine=True)
    assert judge(Counters(canary_ratio=1.79), virtual).verdict == "ok"
    assert judge(Counters(canary_ratio=2.5), virtual).reasons == ["slow_canary"]


def test_one_busy_core_is_seen_on_two_cores_and_on_sixteen() -> None:
    """As a share of all it is a half of the one and a sixteenth of the other."""
    for cpus in (2, 16):
        found = judge(Counters(other_cpu_share=1 / cpus), FOUR_CORES._replace(cpus=cpus))
        assert found.verdict == "invalid"


def test_a_core_that_is_busy_on_purpose_is_no_fault_but_a_second_one_is() -> None:
    on_purpose = FOUR_CORES._replace(expected_busy_cores=1.0)
    busy = Counters(other_cpu_share=0.26, pressure_cpu_share=0.9, cpu_efficiency=0.4)
    assert judge(busy, on_purpose).verdict == "ok"
    assert judge(Counters(other_cpu_share=0.5), on_purpose).reasons == ["cpu_busy"]


def test_reading_the_model_from_a_cold_disk_is_no_memory_pressure() -> None:
    cold = Counters(major_faults=50_000, pressure_memory_share=0.4, cpu_efficiency=0.2)
    assert judge(cold, FOUR_CORES._replace(from_disk=True)).verdict == "ok"
    assert judge(cold, FOUR_CORES).verdict == "invalid"


def test_a_short_sample_is_not_condemned_by_the_steps_of_the_counters() -> None:
    """Two steps of 10 ms on each of four cores are a whole core over 80 ms."""
    short = FOUR_CORES._replace(wall_ns=SECOND // 12)
    assert (
        judge(Counters(other_cpu_share=0.24, pressure_cpu_share=0.9, cpu_efficiency=0.2), short).verdict
        == "ok"
    )
    assert judge(Counters(other_cpu_share=0.8), short).verdict == "invalid"


# Clocks.


@pytest.mark.parametrize(
    ("awake", "since_boot", "wall", "asleep_seconds", "step_seconds"),
    [
        (60, 60, 60, 0, 0),
        (60, 60, 60.03, 0, 0),  # a time service at work
        (60, 60, 57, 0, -3),
        (60, 60, 60 + 86400, 0, 86400),
        (60, 3660, 3660, 3600, 0),  # the lid was closed: all clocks but one went on
        (60, 3660, 3600, 3600, -60),
    ],
)
def test_sleep_and_a_set_clock_are_told_apart(
    awake: float, since_boot: float, wall: float, asleep_seconds: int, step_seconds: int
) -> None:
    before = Reading(5 * SECOND, 7 * SECOND, 1_700_000_000 * SECOND)
    after = Reading(
        *(one + int(more * SECOND) for one, more in zip(before, (awake, since_boot, wall), strict=True))
    )
    found = passed(before, after)
    assert found.asleep_ns == asleep_seconds * SECOND
    assert found.step_ns == step_seconds * SECOND


def test_the_systems_clocks_go_together() -> None:
    clock = SystemClock()
    before = clock.read()
    time.sleep(0.05)
    found = passed(before, clock.read())
    assert found.awake_ns >= 40_000_000
    assert (found.asleep_ns, found.step_ns) == (0, 0)


# The canary.


def test_the_canary_tells_how_much_slower_the_machine_has_become() -> None:
    now, cost = [0], [10_000_000]

    def work() -> None:
        now[0] += cost[0]

    canary = Canary(work=work, clock_ns=lambda: now[0])
    assert canary.ratio() == 1.0
    cost[0] = 15_000_000
    assert canary.ratio() == 1.0  # not so soon after the last
    now[0] += 3 * SECOND
    assert canary.ratio() == 1.5


def test_a_start_on_a_busy_machine_does_not_hide_what_is_slow_later() -> None:
    now, cost = [0], [20_000_000]

    def work() -> None:
        now[0] += cost[0]

    canary = Canary(work=work, clock_ns=lambda: now[0])
    ratios = []
    for milliseconds in (10, 15):
        cost[0] = milliseconds * 1_000_000
        now[0] += 3 * SECOND
        ratios.append(canary.ratio())
    assert ratios == [1.0, 1.5]


# The watch.


class Machine:
    """A machine whose counters a test moves."""

    def __init__(self) -> None:
        self.awake_ns = 0
        self.wall_ns = 0
        self.asleep_ns = 0
        self.busy = 0.0
        self.own = 0.0
        self.engine = 0.0
        self.swapped_in = 0

    def read(self) -> Reading:
        """Be the clock."""
        return Reading(self.awake_ns, self.awake_ns + self.asleep_ns, self.wall_ns)

    def counters(self) -> machine_counters.Counters:
        """Be the system."""
        return machine_counters.Counters(
            cpu=CpuSeconds(self.busy, 0.0, 2),
            cpu_waiting_seconds=None,
            memory_waiting_seconds=None,
            swapped_in_bytes=self.swapped_in,
            swapped_out_bytes=0,
            throttle_events=None,
        )

    def process(self, _process_id: int) -> ProcessCounters:
        """Be the engine."""
        return ProcessCounters(self.engine, 50 * MIB, False, 0)

    def passes(self, seconds: float, *, engine: float = 0.0, others: float = 0.0, own: float = 0.0) -> None:
        """Let time pass; the rest is processor seconds."""
        self.awake_ns += int(seconds * SECOND)
        self.wall_ns += int(seconds * SECOND)
        self.engine += engine
        self.own += own
        self.busy += engine + others + own

    def watch(self) -> Watch:
        """Return a watch on this machine."""
        return Watch(
            canary=Canary(work=lambda: None),
            clock=self,
            read_counters=self.counters,
            read_process=self.process,
            own_seconds=lambda: self.own,
        )


@pytest.fixture
def fake_machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Return a machine of two cores; what the test's own machine suffers is kept out."""
    monkeypatch.setattr(Canary, "ratio", lambda _self: 1.0)
    return Machine()


def finish(watch: Watch, seconds: float = 10.0, *, engine: float, threads: int = 2, **more: Any) -> list[str]:
    return watch.finish(
        wall_ns=int(seconds * SECOND), engine_cpu_ns=int(engine * SECOND), threads=threads, **more
    ).reasons


def test_the_engines_and_our_own_work_are_not_taken_for_others(fake_machine: Machine) -> None:
    watch = fake_machine.watch()
    watch.start(1)
    fake_machine.passes(10, engine=19, own=0.5, others=0.1)
    assert finish(watch, engine=19) == []


def test_another_programs_work_shows(fake_machine: Machine) -> None:
    watch = fake_machine.watch()
    watch.start(1)
    fake_machine.passes(10, engine=10, others=9)
    assert finish(watch, engine=10, threads=1) == ["cpu_busy"]


def test_a_slow_sample_that_nothing_explains_is_still_not_believed(fake_machine: Machine) -> None:
    watch = fake_machine.watch()
    watch.start(1)
    fake_machine.passes(10, engine=8)
    assert finish(watch, engine=8) == ["low_cpu_efficiency"]


def test_a_closed_lid_and_a_set_clock_show_in_the_sample_and_not_in_the_next(fake_machine: Machine) -> None:
    watch = fake_machine.watch()
    watch.start(1)
    fake_machine.passes(10, engine=19)
    fake_machine.asleep_ns += 600 * SECOND
    fake_machine.wall_ns += 605 * SECOND
    assert finish(watch, engine=19) == ["suspended", "clock_step"]
    watch.start(1)
    fake_machine.passes(10, engine=19)
    assert finish(watch, engine=19) == []


def test_a_short_sample_is_judged_by_the_half_second_around_it(fake_machine: Machine) -> None:
    """Ticks of 10 ms say nothing of 50 ms alone, and an answer of a small model takes no longer."""
    watch = fake_machine.watch()
    found = []
    for others in (0.0, 0.045):
        for _sample in range(15):
            watch.start(1)
            fake_machine.passes(0.05, engine=0.05, others=others)
            found.append(finish(watch, 0.05, engine=0.05, threads=1))
    assert found[:16] == [[]] * 16
    assert found[-1] == ["cpu_busy"]


def test_a_short_sample_after_one_that_was_disturbed_on_purpose_is_not_blamed_for_it(
    fake_machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = fake_machine.watch()
    monkeypatch.setattr(Canary, "ratio", lambda _self: 3.0)  # the busy core slows it down
    for _sample in range(12):
        watch.start(1)
        fake_machine.passes(0.05, engine=0.05, others=0.05)
        assert finish(watch, 0.05, engine=0.05, threads=1, expected_busy_cores=1.0) == []
    monkeypatch.setattr(Canary, "ratio", lambda _self: 1.0)
    watch.start(1)
    fake_machine.passes(0.05, engine=0.05)
    assert finish(watch, 0.05, engine=0.05, threads=1) == []


@contextlib.contextmanager
def process() -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that is idle for ever."""
    program = [sys.executable, "-c", "print(flush=True); input()"]
    child = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with child:
        try:
            assert child.stdout is not None
            child.stdout.readline()
            yield child
        finally:
            if sys.platform != "win32":
                os.kill(child.pid, signal.SIGCONT)
            child.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="stops a process as POSIX does")
def test_an_engine_that_somebody_stopped_is_seen_standing_still() -> None:
    with process() as engine:
        watch = Watch(canary=Canary(work=lambda: None))
        watch.start(engine.pid)
        os.kill(engine.pid, signal.SIGSTOP)
        time.sleep(0.5)
        os.kill(engine.pid, signal.SIGCONT)
        found = watch.finish(wall_ns=SECOND // 2, engine_cpu_ns=None, threads=1)
    assert "suspended" in found.reasons
    assert 200_000_000 <= found.counters.suspended_ns <= 2 * SECOND


def test_an_engine_that_vanished_is_no_error() -> None:
    with process() as engine:
        watch = Watch(canary=Canary(work=lambda: None))
        watch.start(engine.pid)
    found = watch.finish(wall_ns=SECOND, engine_cpu_ns=None, threads=1, engine_died=True)
    assert found.verdict == "invalid"
    assert found.counters.major_faults is None


def test_a_sample_that_was_never_finished_does_not_spoil_the_next(fake_machine: Machine) -> None:
    watch = fake_machine.watch()
    watch.start(1)
    fake_machine.passes(100, others=200)
    watch.start(1)
    fake_machine.passes(10, engine=19)
    assert finish(watch, engine=19) == []


STOP_ITSELF = """
import os, signal, subprocess, sys, time
from edgemed_benchmarks.canary import Canary
from edgemed_benchmarks.watch import Watch

watch = Watch(canary=Canary(work=lambda: None))
waker = "import os, sys, time; sys.stdin.readline(); time.sleep(1.2); os.kill(os.getppid(), 18)"
with subprocess.Popen([sys.executable, "-c", waker], stdin=subprocess.PIPE) as child:
    watch.start(None)
    child.stdin.write(b"now\\n")
    child.stdin.flush()
    os.kill(os.getpid(), signal.SIGSTOP)
    found = watch.finish(wall_ns=10**9, engine_cpu_ns=None, threads=1)
assert "suspended" in found.reasons, found
assert found.counters.suspended_ns > 500_000_000, found
"""


@pytest.mark.skipif(sys.platform != "linux", reason="stops itself as POSIX does")
def test_a_watch_that_was_itself_stopped_until_the_answer_was_there_knows_it() -> None:
    """Ctrl+Z and fg: the engine finished meanwhile, and the first thing that happens then is `finish`."""
    subprocess.run([sys.executable, "-c", STOP_ITSELF], check=True, timeout=60)
