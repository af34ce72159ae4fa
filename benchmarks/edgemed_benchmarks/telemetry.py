"""The machine about once a second while a run goes on, in a thread; the runner writes the lines.

A record file has one writer, so the thread only collects: the runner takes the points between two samples.
Reading costs about 1 ms of one core each second (tests/measurements/validity_detection.py measures what it
costs an answer).
"""

import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Self

from edgemed import machine, machine_counters

READ_EVERY_SECONDS = 1.0
KEEP_EVERY_SECONDS = 5.0
"""One line a second would make the file of a night large and say nothing more."""
MOST_POINTS = 10_000
"""Not taken by the runner: the oldest are given up."""


class Point(NamedTuple):
    """One line: `journal.append(Telemetry, at_ns=point.at_ns, durable=False, **point.fields)`."""

    at_ns: int
    fields: dict[str, Any]


class Telemetry:
    """Collects points until it is closed; a context manager."""

    def __init__(
        self,
        now_ns: Callable[[], int],
        *,
        engine_process_id: Callable[[], int | None] = lambda: None,
        joules: Callable[[], float | None] = lambda: None,
        read_every_seconds: float = READ_EVERY_SECONDS,
        keep_every_seconds: float = KEEP_EVERY_SECONDS,
    ) -> None:
        """Start collecting.

        Args:
            now_ns: what a line would carry as `at_ns`: the journal's `now_ns`.
            engine_process_id: asked each time, for the engine may start anew.
            joules: of the energy counter since the run's start; asked at each reading, so that a counter
                that begins again at 0 is never missed.
            read_every_seconds: how often the machine is read.
            keep_every_seconds: how often what was read is kept.
        """
        self._now_ns = now_ns
        self._engine_process_id = engine_process_id
        self._joules = joules
        self._read_every_seconds = read_every_seconds
        self._keep_every_seconds = keep_every_seconds
        self._points: list[Point] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._others = _OtherCpuShare()
        self._thread = threading.Thread(target=self._run, name="edgemed-telemetry", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def take(self) -> list[Point]:
        """Return the points since the last call, in order; write them before the sample's own line."""
        with self._lock:
            points, self._points = self._points, []
        return points

    def close(self) -> None:
        """End the thread. May be called twice; what was collected can still be taken."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        kept_at_ns: int | None = None
        while True:
            at_ns, joules = self._now_ns(), self._joules()
            keep_every_ns = int((self._keep_every_seconds - self._read_every_seconds / 2) * 1e9)
            if kept_at_ns is None or at_ns - kept_at_ns >= keep_every_ns:
                kept_at_ns = at_ns
                point = Point(at_ns, self._fields(joules))
                with self._lock:
                    self._points = [*self._points[-MOST_POINTS + 1 :], point]
            if self._ended.wait(self._read_every_seconds):
                return

    def _fields(self, joules: float | None) -> dict[str, Any]:
        process_id = self._engine_process_id()
        engine = None if process_id is None else machine_counters.process_counters(process_id)
        battery = machine_counters.battery()
        return {
            "temperature_celsius": machine.temperature_celsius(),
            "frequency_hertz": machine.frequency_hertz(),
            "battery_percent": battery.percent if battery else None,
            "battery_watts": battery.watts if battery else None,
            "available_memory_bytes": machine.available_memory_bytes(),
            "engine_rss_bytes": engine.rss_bytes if engine else None,
            "other_cpu_share": self._others.share(process_id, engine),
            "joules": joules,
        }


class _OtherCpuShare:
    """Of all cores, what other programs kept busy since the last point."""

    def __init__(self) -> None:
        self._before: tuple[int | None, float, float] | None = None

    def share(self, process_id: int | None, engine: machine.ProcessCounters | None) -> float | None:
        """Return the share since the last call; None the first time and after the engine started anew."""
        cpu, now = machine.cpu_seconds(), time.monotonic()
        if cpu is None:
            return None
        others = cpu.busy - time.process_time() - (engine.cpu_seconds if engine else 0.0)
        before, self._before = self._before, (process_id, now, others)
        if before is None or before[0] != process_id or now <= before[1]:
            return None
        return round(min(1.0, max(0.0, (others - before[2]) / ((now - before[1]) * cpu.cpus))), 4)
