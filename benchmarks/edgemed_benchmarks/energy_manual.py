"""Energy read off a meter in the socket by a person, before and after; grade D.

The only way that sees the whole computer with its charger, and the only one on a board without a battery.
"""

import re

from edgemed.records import EnergyGrade
from edgemed_benchmarks.errors import ItemError

LEAST_STEPS = 10
"""A reading may be a step too low: a tenth of ten."""
LEAST_SECONDS = 60.0
"""A person needs some seconds to read and type."""
_NUMBER = re.compile(r"\d{1,9}([.,]\d{1,6})?")


class MeterReading:
    """A meter in watt-hours; its reading comes from a person, through `read`."""

    grade: EnergyGrade = "D"
    name = "meter read by a person (whole computer with its charger)"
    least_seconds = LEAST_SECONDS

    def __init__(self, first_reading: str) -> None:
        """Take the first reading in watt-hours, as typed: its decimals say how fine the meter is.

        Raises:
            ItemError: it is no number.
        """
        self._first, step = _watt_hours(first_reading)
        self._last = self._first
        self.least_joules = LEAST_STEPS * step * 3600

    def read(self, reading: str) -> None:
        """Take a later reading in watt-hours.

        Raises:
            ItemError: it is no number, or smaller than the one before.
        """
        watt_hours, _step = _watt_hours(reading)
        if watt_hours < self._last:
            raise ItemError(
                f"{watt_hours:g} Wh is less than {self._last:g} Wh before.",
                hint="Read the energy (Wh or kWh), not the power (W), and do not set the meter to 0.",
            )
        self._last = watt_hours

    def joules(self) -> float | None:
        """Return what the last reading says was used since the first."""
        return (self._last - self._first) * 3600


def _watt_hours(text: str) -> tuple[float, float]:
    """Return the reading and the meter's step, both in Wh, of `1234.5` or `0.123 kWh`."""
    number, _space, unit = text.strip().lower().partition(" ")
    if not _NUMBER.fullmatch(number) or unit.strip() not in ("", "wh", "kwh"):
        raise ItemError(
            f"{text[:30]!r} is no reading of a meter.", hint="Type it like 1234.5 (Wh) or 1.2345 kWh."
        )
    factor = 1000.0 if unit.strip() == "kwh" else 1.0
    decimals = len(number.replace(",", ".").partition(".")[2])
    return float(number.replace(",", ".")) * factor, factor * 10.0**-decimals
