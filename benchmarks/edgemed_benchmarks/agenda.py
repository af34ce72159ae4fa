"""What a block asks next; what is measured over a stretch of time lasts as long as planned.

How many answers fit into that time is known only roughly before the run. On a machine that turns out to be
faster the same questions are asked again, and on a slower one the last are left out: an estimate of an
endurance run that holds, and a window of energy that is long enough for its gauge.
"""

import itertools
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from edgemed.records import Suite
from edgemed_benchmarks.asks import Ask


class Agenda:
    """The asks of one block, one after the other."""

    def __init__(
        self,
        asks: Sequence[Ask],
        lasting: Mapping[Suite, float],
        done: Collection[Ask],
        seconds_of: Callable[[Ask], float],
    ) -> None:
        """Begin behind what is done.

        Args:
            asks: of the block, those of the lasting suites at its end.
            lasting: the seconds that are left for each suite that lasts.
            done: what is not asked again.
            seconds_of: how long an ask is believed to take.
        """
        self._lasting, self._done, self._seconds_of = lasting, done, seconds_of
        self._once = [ask for ask in asks if ask.suite not in lasting and ask not in done]
        self._rounds = {
            suite: [ask for ask in asks if ask.suite == suite and not ask.repetition] for suite in lasting
        }
        self._asks = self._in_order()
        self._next: Ask | None = None
        self._taken_at = 0.0

    def seconds(self) -> tuple[float, float]:
        """Return how long it is believed to take from its beginning, and how long it lasts in any case."""
        return sum(map(self._seconds_of, self._once)), sum(self._lasting.values())

    def lasts(self, ask: Ask) -> bool:
        """Whether an ask is one of a suite that goes on until its time is over."""
        return ask.suite in self._lasting

    def peek(self) -> Ask | None:
        """Return what is asked next, the same until it is taken; None: nothing is left."""
        if self._next is None:
            self._next = next(self._asks, None)
        return self._next

    def take(self) -> None:
        """Begin with what is next."""
        self._next, self._taken_at = None, time.monotonic()

    def leave_out(self, ask: Ask) -> None:
        """Do not ask this again in a later round."""
        asks = self._rounds.get(ask.suite, [])
        asks[:] = [each for each in asks if each.item_id != ask.item_id]

    def _in_order(self) -> Iterator[Ask]:
        yield from self._once
        for suite, seconds in self._lasting.items():
            ends_at = None
            for ask in self._round_after_round(suite):
                left = seconds if ends_at is None else ends_at - time.monotonic()
                if self._seconds_of(ask) > left:
                    break
                yield ask
                # From the moment it was taken: before it the machine may have had to idle.
                ends_at = ends_at or self._taken_at + seconds

    def _round_after_round(self, suite: Suite) -> Iterator[Ask]:
        asks = self._rounds[suite]
        for repetition in itertools.count():
            if not asks:
                return
            for ask in list(asks):
                repeated = ask._replace(repetition=repetition)
                if repeated not in self._done and ask in asks:
                    yield repeated
