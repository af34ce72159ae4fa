"""A fixed piece of work, timed between answers: it takes longer when the processor is throttled or shared.

The only sign of heat on machines whose sensors no program may read, and the same work on every machine, so
that two can be compared. It fits into the processor's first cache and runs on one core.
"""

import hashlib
import time
from collections.abc import Callable

ITERATIONS = 10_000
"""PBKDF2 with SHA-256: about 4 ms with SHA instructions, 20 ms on an old core without."""
REFERENCE_ROUNDS = 15
ROUNDS = 3
EVERY_NS = 2_000_000_000
"""Within so short a time a ratio stays true: short answers are not held up by it."""


def work() -> None:
    """Do the fixed work once."""
    hashlib.pbkdf2_hmac("sha256", b"edgemed", b"canary", ITERATIONS)


class Canary:
    """Times the fixed work now against its time at the start."""

    def __init__(
        self,
        *,
        work: Callable[[], None] = work,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        """Measure the reference, in about 0.1 s; the arguments are for tests."""
        self._work = work
        self._clock_ns = clock_ns
        self._timed_at_ns: int | None = None
        self._ratio = 1.0
        self.reference_ns = self._fastest_ns(REFERENCE_ROUNDS)
        """The fastest round so far: one that no other program disturbed."""

    def ratio(self) -> float:
        """Return the fastest of three rounds now ÷ the reference; > 1 is slower. At most once in 2 s anew."""
        now_ns = self._clock_ns()
        if self._timed_at_ns is None or now_ns - self._timed_at_ns >= EVERY_NS:
            fastest_ns = self._fastest_ns(ROUNDS)
            # Faster than at the start: the machine was busy then.
            self.reference_ns = min(self.reference_ns, fastest_ns)
            self._ratio = fastest_ns / self.reference_ns
            self._timed_at_ns = self._clock_ns()
        return self._ratio

    def _fastest_ns(self, rounds: int) -> int:
        times_ns = []
        for _round in range(rounds):
            began_ns = self._clock_ns()
            self._work()
            times_ns.append(self._clock_ns() - began_ns)
        return max(1, min(times_ns))
