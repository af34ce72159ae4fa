"""Watches the machine and the engine's process during one sample, and says whether its times may be trusted.

watch = Watch()                                  # once a run: times the canary on the quiet machine
watch.start(engine.process_id)
…                                                # one question
validity = watch.finish(wall_ns=…, engine_cpu_ns=…, threads=…)
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import msgspec

from edgemed import machine, machine_counters
from edgemed.machine import ProcessCounters
from edgemed.records import Counters, Validity
from edgemed_benchmarks.canary import Canary
from edgemed_benchmarks.clock import Clock, Reading, SystemClock, passed
from edgemed_benchmarks.validity import LEAST_WINDOW_NS, Circumstances, judge

POLL_SECONDS = 0.1 if machine.CPU_INFO.exists() else 1.0
"""Asking whether the engine stands still costs 0.04 ms on Linux, some milliseconds on Windows."""
LATE_NS = 500_000_000
"""The watching thread wakes within some milliseconds; so late means that this process stood still, too."""
_KEPT_MOMENTS = 16

T = TypeVar("T", int, float)


class _Moment(NamedTuple):
    """Everything that is counted, read at one moment."""

    clocks: Reading
    machine: machine_counters.Counters
    engine: ProcessCounters | None
    engine_process_id: int | None
    own_seconds: float
    """Processor time of this process."""


class Watch:
    """What is counted around each sample. One thread starts and finishes; samples do not overlap."""

    def __init__(
        self,
        *,
        canary: Canary | None = None,
        clock: Clock | None = None,
        read_counters: Callable[[], machine_counters.Counters] = machine_counters.read_counters,
        read_process: Callable[[int], ProcessCounters | None] = machine_counters.process_counters,
        own_seconds: Callable[[], float] = time.process_time,
        virtual_machine: bool | None = None,
    ) -> None:
        """Measure the canary's reference if none is given; the other arguments are for tests."""
        self.canary = canary or Canary()
        self._clock = clock or SystemClock()
        self._read_counters = read_counters
        self._read_process = read_process
        self._own_seconds = own_seconds
        self._moments: deque[_Moment] = deque(maxlen=_KEPT_MOMENTS)
        self._total_memory_bytes = machine.total_memory_bytes()
        self._virtual_machine = (
            machine_counters.virtual_machine() if virtual_machine is None else virtual_machine
        )
        self._before: _Moment | None = None
        self._poll: _Poll | None = None

    def start(self, engine_process_id: int | None) -> None:
        """Begin a sample; None is an engine without a process, of which nothing can be counted."""
        if self._poll is not None:
            self._poll.end()  # the sample before came to no end
        self._before = self._read(engine_process_id)
        self._moments.append(self._before)
        self._poll = _Poll(engine_process_id, self._read_process)

    def finish(
        self,
        *,
        wall_ns: int,
        engine_cpu_ns: int | None,
        threads: int,
        expected_busy_cores: float = 0.0,
        from_disk: bool = False,
        engine_died: bool = False,
    ) -> Validity:
        """End the sample and judge it; takes about 1 ms, and 10 to 60 ms more each 2 s for the canary.

        Args:
            wall_ns: of the whole answer.
            engine_cpu_ns: processor time of the engine in it, all threads; None if not known.
            threads: that the engine used; 0 if not known.
            expected_busy_cores: kept busy on purpose.
            from_disk: the model is read from the disk on purpose, as in the first answer after a cold load.
            engine_died: its process ended in the middle.
        """
        before, poll = self._before, self._poll
        assert before is not None and poll is not None, "finish without start"
        stood_still_ns = poll.end()
        after = self._read(before.engine_process_id)
        window = self._window_start(before, after)
        counters = self._counters(before, after, window, stood_still_ns)
        efficiency = None
        if engine_cpu_ns is not None and threads and wall_ns:
            efficiency = round(engine_cpu_ns / (wall_ns * threads), 3)
        slowed = machine_counters.slowed_now()
        self._moments.append(after)
        if expected_busy_cores:
            # The next sample's window must not reach back into this one.
            self._moments.clear()
        self._before = self._poll = None
        counters = msgspec.structs.replace(
            counters,
            cpu_efficiency=efficiency,
            undervoltage=slowed.undervoltage,
            throttle_events=_sum(counters.throttle_events, None if slowed.slowed is None else +slowed.slowed),
            # A core that is busy on purpose slows the canary down, too, and says nothing of heat.
            canary_ratio=None if expected_busy_cores else round(self.canary.ratio(), 3),
        )
        return judge(
            counters,
            Circumstances(
                wall_ns=wall_ns,
                cpus=after.machine.cpu.cpus if after.machine.cpu else 1,
                total_memory_bytes=self._total_memory_bytes,
                window_ns=after.clocks.awake_ns - window.clocks.awake_ns,
                expected_busy_cores=expected_busy_cores,
                from_disk=from_disk,
                engine_died=engine_died,
                virtual_machine=bool(self._virtual_machine),
            ),
        )

    def _read(self, engine_process_id: int | None) -> _Moment:
        return _Moment(
            clocks=self._clock.read(),
            machine=self._read_counters(),
            engine=None if engine_process_id is None else self._read_process(engine_process_id),
            engine_process_id=engine_process_id,
            own_seconds=self._own_seconds(),
        )

    def _window_start(self, before: _Moment, after: _Moment) -> _Moment:
        """Return the sample's start, or for a short one an earlier moment, so that ticks can be counted."""
        latest_ns = after.clocks.awake_ns - LEAST_WINDOW_NS
        if before.clocks.awake_ns <= latest_ns:
            return before
        earlier = [moment for moment in self._moments if moment.engine_process_id == before.engine_process_id]
        early_enough = [moment for moment in earlier if moment.clocks.awake_ns <= latest_ns]
        return early_enough[-1] if early_enough else earlier[0]

    def _counters(self, before: _Moment, after: _Moment, window: _Moment, stood_still_ns: int) -> Counters:
        time_passed = passed(before.clocks, after.clocks)
        seconds = max(time_passed.awake_ns, 1) / 1e9
        one, two = before.machine, after.machine
        return Counters(
            other_cpu_share=_other_cpu_share(window, after),
            steal_share=_steal_share(window, after),
            pressure_cpu_share=_share(_change(one.cpu_waiting_seconds, two.cpu_waiting_seconds), seconds),
            pressure_memory_share=_share(
                _change(one.memory_waiting_seconds, two.memory_waiting_seconds), seconds
            ),
            major_faults=_change(_major_faults(before), _major_faults(after)),
            swapped_in_bytes=_change(one.swapped_in_bytes, two.swapped_in_bytes),
            swapped_out_bytes=_change(one.swapped_out_bytes, two.swapped_out_bytes),
            throttle_events=_change(one.throttle_events, two.throttle_events),
            suspended_ns=time_passed.asleep_ns + stood_still_ns,
            clock_step_ns=time_passed.step_ns,
            temperature_celsius=machine.temperature_celsius(),
            frequency_hertz=machine.frequency_hertz(),
            available_memory_bytes=machine.available_memory_bytes(),
        )


class _Poll:
    """A thread that looks whether the engine, or this process, stands still."""

    def __init__(self, process_id: int | None, read_process: Callable[[int], ProcessCounters | None]) -> None:
        self._process_id = process_id
        self._read_process = read_process
        self._ended = threading.Event()
        self._stood_still_ns = 0
        self._thread = threading.Thread(target=self._run, name="edgemed-watch", daemon=True)
        self._thread.start()

    def end(self) -> int:
        """Stop looking; return for how long something stood still, to about 0.1 s."""
        self._ended.set()
        self._thread.join()
        return self._stood_still_ns

    def _run(self) -> None:
        looked_at_ns, ended = time.monotonic_ns(), False
        while not ended:
            # Once more at the end: this process may have stood still while the engine finished its answer.
            ended = self._ended.wait(POLL_SECONDS)
            now_ns = time.monotonic_ns()
            late_ns = now_ns - looked_at_ns - int(POLL_SECONDS * 1e9)
            if late_ns > LATE_NS:
                self._stood_still_ns += late_ns
            elif self._engine_is_stopped():
                self._stood_still_ns += now_ns - looked_at_ns
            looked_at_ns = now_ns

    def _engine_is_stopped(self) -> bool:
        engine = None if self._process_id is None else self._read_process(self._process_id)
        return engine is not None and engine.stopped


def _other_cpu_share(before: _Moment, after: _Moment) -> float | None:
    if before.machine.cpu is None or after.machine.cpu is None:
        return None
    busy = after.machine.cpu.busy - before.machine.cpu.busy
    ours = max(0.0, after.own_seconds - before.own_seconds)
    if before.engine is not None and after.engine is not None:
        ours += max(0.0, after.engine.cpu_seconds - before.engine.cpu_seconds)
    seconds = (after.clocks.awake_ns - before.clocks.awake_ns) / 1e9
    return _share(busy - ours, seconds * after.machine.cpu.cpus)


def _steal_share(before: _Moment, after: _Moment) -> float | None:
    if before.machine.cpu is None or after.machine.cpu is None:
        return None
    seconds = (after.clocks.awake_ns - before.clocks.awake_ns) / 1e9
    return _share(after.machine.cpu.stolen - before.machine.cpu.stolen, seconds * after.machine.cpu.cpus)


def _share(part: float | None, whole: float) -> float | None:
    if part is None or whole <= 0:
        return None
    return round(min(1.0, max(0.0, part / whole)), 4)


def _change(before: T | None, after: T | None) -> T | None:
    # Counters may run backwards: a processor that was switched off, a hypervisor's.
    return None if before is None or after is None else max(after - before, after * 0)


def _sum(one: int | None, other: int | None) -> int | None:
    known = [count for count in (one, other) if count is not None]
    return sum(known) if known else None


def _major_faults(moment: _Moment) -> int | None:
    return None if moment.engine is None else moment.engine.major_faults
