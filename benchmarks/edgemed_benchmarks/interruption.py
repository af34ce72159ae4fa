"""Ctrl+C and the system's wish to end, taken where nothing can be lost.

While a model loads or something is waited for, they raise at once. While a question is answered they cut the
answer, and the runner ends the record properly; a second Ctrl+C does not wait for that answer. While a line
is written they wait.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Literal, Self

from edgemed import operating_system
from edgemed.errors import Terminated


class Interruption:
    """A context manager that watches for the wish to end; only the main thread can."""

    def __init__(self) -> None:
        self._wish: BaseException | None = None
        self._state: Literal["waiting", "asking", "writing"] = "writing"
        self._stop: Callable[[], None] | None = None
        self._previous: object = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._pressed)
            operating_system.on_termination(lambda exit_code: self._take(Terminated(exit_code)))
        return self

    def __exit__(self, *_error: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)  # type: ignore[arg-type]
            operating_system.raise_on_termination()

    @property
    def wished(self) -> bool:
        """Whether somebody wants the run to end."""
        return self._wish is not None

    def raise_if_wished(self) -> None:
        """Raise what was wished for.

        Raises:
            KeyboardInterrupt: Ctrl+C.
            Terminated: the system.
        """
        if self._wish is not None:
            raise self._wish

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """In this block the wish to end raises at once."""
        self.raise_if_wished()
        self._state = "waiting"
        try:
            yield
        finally:
            self._state = "writing"

    @contextlib.contextmanager
    def asking(self, stop: Callable[[], None]) -> Iterator[None]:
        """In this block the wish to end calls `stop`, and raises when it comes again."""
        self.raise_if_wished()
        self._state, self._stop = "asking", stop
        try:
            yield
        finally:
            self._state, self._stop = "writing", None

    def _pressed(self, _signal: int, _frame: FrameType | None) -> None:
        self._take(KeyboardInterrupt())

    def _take(self, wish: BaseException) -> None:
        again = self._wish is not None
        self._wish = self._wish or wish
        if self._state == "waiting" or (self._state == "asking" and again):
            raise wish
        if self._stop is not None:
            self._stop()
