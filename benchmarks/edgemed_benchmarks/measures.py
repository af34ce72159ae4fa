"""One measured number as reports show it: value, interval, how many samples, and why something is missing."""

import math
from typing import Literal, NamedTuple

from edgemed_benchmarks.stats import Estimate

Unit = Literal[
    "seconds",
    "tokens/s",
    "bytes",
    "share",
    "Wh",
    "joules",
    "watts",
    "answers",
    "questions/h",
    "nats",
    "points",
    "plain",
]

_MOST_PLACES = 6


class Measure(NamedTuple):
    """One number about one arm; `estimate` is in `unit`."""

    key: str
    """Stable name, for CSV and programs."""
    title: str
    unit: Unit
    estimate: Estimate
    p90: Estimate | None = None
    """What 9 of 10 stay within; None where that says nothing."""
    note: str = ""


def known(value: float, samples: int, reason: str = "") -> Estimate:
    """Return an estimate without an interval."""
    return Estimate(value, None, None, samples, reason)


def unknown(reason: str, samples: int = 0) -> Estimate:
    """Return an estimate without a value, and why."""
    return Estimate(None, None, None, samples, reason)


def value_text(value: float | None, unit: Unit) -> str:
    """Return a value with its unit as a person reads it: `2.10 s`, `87 ms`, `41.5 %`; a dash for None."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "never"
    number, symbol = _scaled(value, unit, value)
    return f"{_digits(number)}{symbol}"


def interval_text(estimate: Estimate, unit: Unit) -> str:
    """Return `1.90 to 2.40`, both ends in the unit that `value_text` names; "" where there is no interval."""
    if estimate.low is None or estimate.high is None:
        return ""
    scale = estimate.value if estimate.value is not None else estimate.high
    low, _symbol = _scaled(estimate.low, unit, scale)
    high, _symbol = _scaled(estimate.high, unit, scale)
    shown, _symbol = _scaled(scale, unit, scale)
    return f"{_digits(low, like=shown)} to {_digits(high, like=shown)}"


def duration_text(seconds: float) -> str:
    """Return a time in the unit that a person would choose: `43 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def limit_text(seconds: float) -> str:
    """Return a limit in words: `8 seconds`, `1 second`."""
    return f"{seconds:g} second" + ("" if seconds == 1 else "s")


def _scaled(value: float, unit: Unit, scale: float) -> tuple[float, str]:
    """Return the value in a handy unit, chosen by `scale`, with the symbol that follows it."""
    if unit == "seconds":
        return (value * 1000, " ms") if abs(scale) < 1 else (value, " s")
    if unit == "bytes":
        return (value / 1e9, " GB") if abs(scale) >= 1e9 else (value / 1e6, " MB")
    if unit == "share":
        return value * 100, " %"
    symbols = {
        "joules": " J",
        "watts": " W",
        "questions/h": " per hour",
        "answers": "",
        "points": "",
        "plain": "",
    }
    return value, symbols.get(unit, f" {unit}")


def _digits(number: float, *, like: float | None = None) -> str:
    """Return three significant digits of `number`, or as many places as `like` has; no powers of ten."""
    if not math.isfinite(number):
        return "never"
    example = number if like is None else like
    if example == 0:
        return "0" if number == 0 else f"{number:.3g}"
    places = 2 - math.floor(math.log10(abs(example)))
    if places > _MOST_PLACES:
        return f"{number:.2e}"
    return f"{number:,.{max(0, places)}f}"
