"""The machine around the engine during a run: validity, telemetry, energy, and what it is."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from edgemed import machine, paths
from edgemed.engine import kernels
from edgemed.records import Energy, Validity
from edgemed_benchmarks.bandwidth import memory_bandwidth
from edgemed_benchmarks.energy import IDLE_SECONDS, Meter, choose
from edgemed_benchmarks.energy_manual import MeterReading
from edgemed_benchmarks.errors import ItemError
from edgemed_benchmarks.fingerprint import machine_fields
from edgemed_benchmarks.overhead import Overhead, measure_overhead
from edgemed_benchmarks.run_settings import EnergyNeeds
from edgemed_benchmarks.telemetry import Point, Telemetry
from edgemed_benchmarks.watch import Watch

_LOOK_EVERY_SECONDS = 5.0
_READ_NOW = "What does the meter read now (like 1234.5 Wh or 1.2345 kWh)?"
_READ_AGAIN = "And what does the meter read now?"


class MachineSide:
    """What `runner.Surroundings` asks for, from this machine; a context manager."""

    def __init__(
        self, *, battery_watt_hours: float | None = None, read_meter: Callable[[str], str] | None = None
    ) -> None:
        """Measure what needs a quiet machine: before any model is loaded.

        Args:
            battery_watt_hours: what the battery holds when full, from its label.
            read_meter: asks a person for the reading of a meter in the socket; None: there is none.
        """
        self._watch = Watch()
        self._bandwidth = memory_bandwidth()
        self._telemetry: Telemetry | None = None
        self._engine_process_id: int | None = None
        self._read_meter = read_meter
        self._reading: MeterReading | None = None
        self._meter: Meter | None = None
        self._no_energy = ""
        self._looked_at = time.monotonic()
        self._on_mains = machine.on_mains()
        if read_meter is not None:
            self._reading = MeterReading(read_meter(_READ_NOW))
            self._meter = Meter(self._reading)
            return
        chosen = choose(battery_watt_hours=battery_watt_hours)
        if chosen.source is not None:
            self._meter = Meter(chosen.source)
        self._no_energy = " ".join(
            f"{each.way}: {each.reason} {each.advice}".strip() for each in chosen.refused
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._telemetry is not None:
            self._telemetry.close()

    @property
    def energy(self) -> EnergyNeeds | str:
        """What a measurement of energy needs; or why there can be none, in sentences."""
        if self._meter is None:
            return self._no_energy or "This machine does not tell how much energy it uses."
        source = self._meter.source
        return EnergyNeeds(
            idle_seconds=max(IDLE_SECONDS, source.least_seconds),
            window_seconds=source.least_seconds,
            each_answer=source.grade == "A",
        )

    def overhead(self, folder: Path) -> Overhead:
        """Return what is done around each answer when the record is in this folder.

        Raises:
            StorageError: nothing can be written there.
        """
        return measure_overhead(folder, self._watch.canary)

    def start(self, now_ns: Callable[[], int]) -> None:
        """Begin to collect telemetry; `now_ns` is the journal's time."""
        self._telemetry = Telemetry(
            now_ns, engine_process_id=lambda: self._engine_process_id, joules=self._counted_joules
        )

    def describe(self, llama_cpp_build: str, model_sha256: str) -> dict[str, Any]:
        """Return the fields of a `records.Machine`."""
        return machine_fields(
            llama_cpp_build=llama_cpp_build,
            kernels=kernels.recall(paths.kernels_file(), llama_cpp_build, model_sha256) or "",
            energy_source=self._meter.source.name if self._meter else None,
            energy_grade=self._meter.source.grade if self._meter else None,
            canary_ns=self._watch.canary.reference_ns,
            measure_bandwidth=False,
        ) | {"memory_bandwidth_bytes_per_second": self._bandwidth}

    def begin(self, engine_process_id: int | None) -> None:
        """Begin to watch one answer."""
        self._engine_process_id = engine_process_id
        self._watch.start(engine_process_id)

    def end(
        self,
        *,
        wall_ns: int,
        engine_cpu_ns: int | None,
        threads: int,
        expected_busy_cores: float,
        from_disk: bool,
        engine_died: bool,
    ) -> Validity:
        """Return whether the times since `begin` may be trusted."""
        return self._watch.finish(
            wall_ns=wall_ns,
            engine_cpu_ns=engine_cpu_ns,
            threads=threads,
            expected_busy_cores=expected_busy_cores,
            from_disk=from_disk,
            engine_died=engine_died,
        )

    def telemetry(self) -> list[Point]:
        """Return what was seen since the last call."""
        return self._telemetry.take() if self._telemetry else []

    def changes(self) -> list[tuple[str, str]]:
        """Return kind and detail of what a reader must know since the last call."""
        now = time.monotonic()
        if now - self._looked_at < _LOOK_EVERY_SECONDS:
            return []
        self._looked_at = now
        before, self._on_mains = self._on_mains, machine.on_mains()
        if self._on_mains == before or self._on_mains is None or before is None:
            return []
        return [("power_source_changed", "to mains" if self._on_mains else "to the battery")]

    def measure_idle(self, seconds: float) -> None:
        """Learn what energy the machine uses while it does nothing."""
        if self._meter is not None:
            self._ask_meter(_READ_NOW)
            self._meter.measure_idle(seconds, sleep=self._idle)

    def open_window(self) -> None:
        """Begin to measure energy."""
        if self._meter is not None:
            self._ask_meter(_READ_NOW)
            self._meter.start()

    def close_window(self) -> Energy | None:
        """Return the energy since `open_window`; None where it cannot be known, and `energy_refusal` why."""
        if self._meter is None:
            return None
        self._ask_meter(_READ_AGAIN)
        return self._meter.finish()

    @property
    def energy_refusal(self) -> str:
        """Why the last window gave no number; empty if it did."""
        return self._meter.refusal if self._meter else ""

    def _counted_joules(self) -> float | None:
        """Only a hardware counter moves from second to second."""
        return self._meter.joules() if self._meter and self._meter.source.grade == "A" else None

    def _idle(self, seconds: float) -> None:
        time.sleep(seconds)
        self._ask_meter(_READ_AGAIN)

    def _ask_meter(self, question: str) -> None:
        if self._reading is None or self._read_meter is None:
            return
        before = ""
        while True:
            try:
                self._reading.read(self._read_meter(before + question))
                return
            except ItemError as error:
                # A slip of the finger must not end a run.
                before = f"{error.message} {error.hint} "
