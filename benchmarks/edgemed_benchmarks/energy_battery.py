"""Energy of the whole computer from its battery, while it discharges: grade B in joules, C in percent.

Batteries count in large steps and tell of them late, so a measurement takes ten minutes or more.
"""

from collections.abc import Callable

from edgemed import machine_counters
from edgemed.machine_counters import Battery
from edgemed.records import EnergyGrade
from edgemed_benchmarks.energy_source import NoSource

LEAST_JOULES = 720.0
"""0.2 Wh: twenty of the usual steps of 10 mWh."""
LEAST_SECONDS = 600.0
"""Some batteries renew their numbers once a minute: 10 % of it."""
LEAST_PERCENT_POINTS = 10.0
"""A point too much and a point too little are 10 % of it."""
_WAY = "the battery"


class BatteryEnergy:
    """What the battery gave, by its own counter."""

    grade: EnergyGrade = "B"
    name = "battery: energy (whole computer)"
    least_joules = LEAST_JOULES
    least_seconds = LEAST_SECONDS

    def __init__(self, read: Callable[[], Battery | None], left_joules: float) -> None:
        """Use `open_battery`."""
        self._read = read
        self._began_with = left_joules

    def joules(self) -> float | None:
        """Return what was used; None once it is charged, or gone."""
        battery = self._read()
        if battery is None or not battery.discharging or battery.left_joules is None:
            return None
        return self._began_with - battery.left_joules


class BatteryPercent:
    """What the battery gave, from its percent and what it holds when full."""

    grade: EnergyGrade = "C"
    least_seconds = LEAST_SECONDS

    def __init__(self, read: Callable[[], Battery | None], percent: float, full_joules: float) -> None:
        """Use `open_battery`."""
        self._read = read
        self._began_with = percent
        self._full_joules = full_joules
        self.name = f"battery: percent of {full_joules / 3600:.0f} Wh (whole computer)"
        self.least_joules = full_joules * LEAST_PERCENT_POINTS / 100

    def joules(self) -> float | None:
        """Return what was used; None once it is charged, or gone."""
        battery = self._read()
        if battery is None or not battery.discharging or battery.percent is None:
            return None
        return (self._began_with - battery.percent) / 100 * self._full_joules


def open_battery(
    *,
    full_watt_hours: float | None = None,
    read: Callable[[], Battery | None] = machine_counters.battery,
) -> BatteryEnergy | BatteryPercent | NoSource:
    """Return the battery's counter, or why it cannot be used.

    Args:
        full_watt_hours: what it holds when full, from its label, where the system does not tell.
        read: for tests.
    """
    battery = read()
    if battery is None:
        return NoSource(_WAY, "This computer has none, or does not show it.")
    if not battery.discharging:
        return NoSource(_WAY, "It is not in use: the charger is plugged in.", "Unplug the charger.")
    if battery.left_joules is not None:
        return BatteryEnergy(read, battery.left_joules)
    full_joules = battery.full_joules or (None if full_watt_hours is None else full_watt_hours * 3600)
    if battery.percent is None or full_joules is None:
        return NoSource(
            _WAY,
            "It tells its percent, and not how much it holds.",
            "Give the watt-hours (Wh) from its label with --battery-wh.",
        )
    if battery.percent < LEAST_PERCENT_POINTS + 5:
        return NoSource(_WAY, f"With {battery.percent:.0f} % it is too empty to measure.", "Charge it first.")
    return BatteryPercent(read, battery.percent, full_joules)
