"""Progress for people, on standard error: one line that changes on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable
from typing import TextIO

from edgemed.terminal_text import clean

_WORDS = {
    "export": "writing",
    "merge": "writing",
    "fingerprint": "reading the model",
    "reading": "reading the file",
    "tensors": "comparing tensors",
    "vocabulary": "comparing tokens and chat template",
    "logits": "comparing logits",
    "importance": "reading the data with the model",
    "tokens": "counting tokens",
}
_TERMINAL_SECONDS = 0.1
_PLAIN_SECONDS = 30.0
_FORECAST_AFTER_SECONDS = 2.0


class ProgressLine:
    """A `Progress` that writes; `step` names the work that the next calls belong to."""

    def __init__(
        self,
        stream: TextIO,
        *,
        is_terminal: bool,
        columns: int = 80,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._is_terminal = is_terminal
        self._columns = columns
        self._clock = clock
        self._step = ""
        self._stage = ""
        self._began_at = self._shown_at = 0.0
        self._shown_width = 0

    def step(self, name: str) -> None:
        """Begin a piece of work, such as "2/5 quantize Q8_0"."""
        self._step, self._stage = name, ""
        self._show(name)

    def __call__(self, stage: str, done: int, total: int, unit: str = "bytes") -> None:
        """Show how far a stage is.

        On a terminal at most ten times a second. Elsewhere what takes seconds gets a line, and another one
        twice a minute.
        """
        now = self._clock()
        if stage != self._stage:
            self._stage, self._began_at, self._shown_at = stage, now, 0.0
        if self._is_terminal:
            wait_until = self._shown_at + _TERMINAL_SECONDS
        elif self._shown_at:
            wait_until = self._shown_at + _PLAIN_SECONDS
        else:
            # Nobody knows how long a stage without a count will take.
            wait_until = self._began_at + (_FORECAST_AFTER_SECONDS if total > 1 else 0.0)
        if now < wait_until or (total <= 1 and not self._is_terminal and self._is_in_step(stage)):
            return
        self._shown_at = now
        self._show(self._line(stage, done, total, now - self._began_at))

    def clear(self) -> None:
        """Leave a terminal's line empty for what is written next."""
        if self._is_terminal and self._shown_width:
            self._stream.write("\r" + " " * self._shown_width + "\r")
            self._stream.flush()
            self._shown_width = 0

    def _line(self, stage: str, done: int, total: int, elapsed_seconds: float) -> str:
        what = _words(stage)
        parts = [self._step if self._is_in_step(stage) else f"{self._step}: {what}" if self._step else what]
        if total > 1:
            parts.append(f"{100 * min(done, total) // total} %")
            if 0 < done < total and elapsed_seconds >= _FORECAST_AFTER_SECONDS:
                parts.append(f"{readable_seconds(elapsed_seconds * (total - done) / done)} left")
        return ", ".join(parts)

    def _is_in_step(self, stage: str) -> bool:
        """Whether the step's own name says it already, as "quantize Q8_0" does."""
        return bool(self._step) and (stage in self._step or _words(stage) in self._step)

    def _show(self, line: str) -> None:
        if not self._is_terminal:
            self._stream.write(line + "\n")
        else:
            line = line[: self._columns - 1]
            # Spaces, not a control sequence: older Windows consoles print those.
            self._stream.write("\r" + line.ljust(self._shown_width))
            self._shown_width = len(line)
        self._stream.flush()


def _words(stage: str) -> str:
    return clean(_WORDS.get(stage, stage)).replace("\n", " ")


def readable_seconds(seconds: float) -> str:
    """Return a duration as people read it: 12 s, 3:05 min, 2:10 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02} h"
