"""How many threads llama.cpp should use right now. Called by the child between tokens and batches.

llama.cpp's threads meet at a barrier some hundred times a token. A thread that lost its core to another
program makes all others wait for whole scheduler slices, so one thread too many costs far more than one too
few: the count follows the cores that are really free (docs/experiments.md).
"""

import time
from collections.abc import Callable

LOOK_EVERY_SECONDS = 0.4


class ThreadController:
    """Follow the free cores, looking at most every `LOOK_EVERY_SECONDS`.

    A controller that tries settings out and times tokens fails: one token at the wrong setting can take
    seconds.
    """

    def __init__(
        self,
        cores: int,
        others_busy_cores: Callable[[], float | None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.threads = cores
        self._cores = cores
        self._others_busy_cores = others_busy_cores
        self._clock = clock
        self._looked_at = clock()
        others_busy_cores()

    def look(self) -> int:
        """Return the thread count to use now."""
        now = self._clock()
        if now - self._looked_at < LOOK_EVERY_SECONDS:
            return self.threads
        busy = self._others_busy_cores()
        self._looked_at = now
        if busy is not None:
            self.threads = max(1, min(self._cores, round(self._cores - busy)))
        return self.threads


class FixedThreads:
    """The number the user asked for."""

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def look(self) -> int:
        """Return the thread count to use now."""
        return self.threads
