"""How much energy answers cost: chooses what to measure with, and refuses where it cannot know.

    chosen = choose()
    meter = Meter(chosen.source)
    meter.measure_idle()
    meter.start(); …; energy = meter.finish()       # records.Energy, or None with `meter.refusal`

A measurement that is smaller than the counter's own step gives no number: a number that looks like one would
be worse than none. No table of usual powers is used.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from edgemed.records import Energy
from edgemed_benchmarks.energy_battery import open_battery
from edgemed_benchmarks.energy_emi import open_emi
from edgemed_benchmarks.energy_rapl import open_rapl
from edgemed_benchmarks.energy_source import EnergySource, NoSource

IDLE_SECONDS = 30.0
Opener = Callable[[], EnergySource | NoSource]


class Chosen(NamedTuple):
    """What will be measured with, and why not with the others."""

    source: EnergySource | None
    refused: list[NoSource]


def choose(*, battery_watt_hours: float | None = None, openers: Sequence[Opener] | None = None) -> Chosen:
    """Return the most trustworthy source that this machine lets us use.

    A meter that a person reads (`energy_manual.MeterReading`) is used only when it is asked for.

    Args:
        battery_watt_hours: what the battery holds when full, from its label.
        openers: for tests.
    """
    if openers is None:
        openers = (open_rapl, open_emi, lambda: open_battery(full_watt_hours=battery_watt_hours))
    sources: list[EnergySource] = []
    refused: list[NoSource] = []
    for opener in openers:
        opened = opener()
        if isinstance(opened, NoSource):
            refused.append(opened)
        else:
            sources.append(opened)
    return Chosen(min(sources, key=lambda source: source.grade, default=None), refused)


class Meter:
    """Measures windows of time with one source; `joules` may be called from another thread."""

    def __init__(self, source: EnergySource, *, clock_ns: Callable[[], int] = time.perf_counter_ns) -> None:
        """Use one source for the whole run; `clock_ns` is for tests."""
        self.source = source
        self.idle_watts: float | None = None
        self.refusal = ""
        """Why the last window gave no number."""
        self._clock_ns = clock_ns
        self._lock = threading.Lock()
        self._began: tuple[int, float | None] | None = None

    def joules(self) -> float | None:
        """Return the energy since the source was opened, for telemetry."""
        with self._lock:
            return self.source.joules()

    def measure_idle(
        self, seconds: float | None = None, sleep: Callable[[float], None] = time.sleep
    ) -> float | None:
        """Wait while nothing works, and return the watts of the idle machine; None where it cannot be known.

        Args:
            seconds: None is what the source needs, at least 30 s; a battery needs ten minutes.
            sleep: for tests; a meter that a person reads is read in it.
        """
        self.start()
        sleep(max(IDLE_SECONDS, self.source.least_seconds) if seconds is None else seconds)
        measured = self.finish()
        self.idle_watts = None if measured is None else measured.joules / (measured.window_ns / 1e9)
        return self.idle_watts

    def start(self) -> None:
        """Begin a window."""
        self._began = (self._clock_ns(), self.joules())

    def finish(self) -> Energy | None:
        """End the window; None, with the reason in `refusal`, if it says nothing."""
        assert self._began is not None, "finish without start"
        (began_ns, before), self._began = self._began, None
        after, window_ns = self.joules(), self._clock_ns() - began_ns
        self.refusal = self._refusal(before, after, window_ns)
        if self.refusal or before is None or after is None:
            return None
        idle = None if self.idle_watts is None else self.idle_watts * window_ns / 1e9
        return Energy(
            joules=after - before,
            idle_joules=idle,
            source=self.source.name,
            grade=self.source.grade,
            window_ns=window_ns,
        )

    def _refusal(self, before: float | None, after: float | None, window_ns: int) -> str:
        if before is None or after is None:
            return "The counter stopped telling: the charger was plugged in, or it may not be read any more."
        if window_ns < self.source.least_seconds * 1e9:
            return (
                f"{window_ns / 1e9:.1f} s are too short for this counter: "
                f"it needs {self.source.least_seconds:g} s."
            )
        if after - before < self.source.least_joules:
            return (
                f"{after - before:.1f} J are too little for this counter: "
                f"below {self.source.least_joules:g} J its own steps are a tenth and more."
            )
        return ""


def answers_per_charge(joules_per_answer: float, full_joules: float) -> float:
    """Return how many answers a full battery gives when nothing else uses it but the idle computer.

    Args:
        joules_per_answer: of the whole computer, idle use included: of a battery or a meter, not of RAPL.
        full_joules: what the battery holds when full.
    """
    return full_joules / joules_per_answer
