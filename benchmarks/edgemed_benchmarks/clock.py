"""Three clocks read together: what tells a sleeping machine and a changed wall clock from time that passed.

Times of answers come from `time.perf_counter_ns`; these clocks only say whether they may be trusted.
"""

import time
from typing import NamedTuple, Protocol

from edgemed import operating_system

_TRIES = 5
_CLOSE_ENOUGH_NS = 100_000
STEP_NS = 100_000_000
"""A wall clock that moves less apart from the monotonic one was not set."""
DRIFT_SHARE = 1e-3
"""Time services turn a wrong clock slowly: 0.5 per thousand on Linux, up to about 1 on Windows."""
NOTICED_SLEEP_NS = 5_000_000
"""What a busy machine can put between the reading of two clocks is no sleep."""


class Reading(NamedTuple):
    """The three clocks at one moment, in nanoseconds; each counts from a beginning of its own."""

    awake_ns: int
    """Stands still while the machine sleeps."""
    since_boot_ns: int
    """Goes on while the machine sleeps."""
    wall_ns: int
    """The date and time, which a person or a time service may set."""


class Clock(Protocol):
    """Where readings come from; tests have their own."""

    def read(self) -> Reading:
        """Return the three clocks at this moment."""


class SystemClock:
    """The system's clocks."""

    def read(self) -> Reading:
        """Return the three clocks, read within 0.1 ms of each other where the machine lets us."""
        best: Reading | None = None
        shortest_ns = 0
        for _try in range(_TRIES):
            began_ns = operating_system.awake_ns()
            since_boot_ns, wall_ns = operating_system.since_boot_ns(), time.time_ns()
            ended_ns = operating_system.awake_ns()
            if best is None or ended_ns - began_ns < shortest_ns:
                best = Reading((began_ns + ended_ns) // 2, since_boot_ns, wall_ns)
                shortest_ns = ended_ns - began_ns
            if shortest_ns <= _CLOSE_ENOUGH_NS:
                break
        assert best is not None
        return best


class Passed(NamedTuple):
    """What happened between two readings."""

    awake_ns: int
    asleep_ns: int
    """The machine slept so long."""
    step_ns: int
    """The wall clock was set so far, forward if positive; 0 below what a time service does in silence."""


def passed(before: Reading, after: Reading) -> Passed:
    """Return what happened from one reading to a later one."""
    awake_ns = after.awake_ns - before.awake_ns
    since_boot_ns = after.since_boot_ns - before.since_boot_ns
    step_ns = after.wall_ns - before.wall_ns - since_boot_ns
    asleep_ns = since_boot_ns - awake_ns
    unnoticed_ns = STEP_NS + int(since_boot_ns * DRIFT_SHARE)
    return Passed(
        awake_ns=awake_ns,
        asleep_ns=asleep_ns if asleep_ns > NOTICED_SLEEP_NS else 0,
        step_ns=step_ns if abs(step_ns) > unnoticed_ns else 0,
    )
