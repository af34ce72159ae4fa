"""What the person sees: steps, progress with the time left, questions. All of it goes to standard error."""

import shutil
import sys
import time
from typing import TextIO

from edgemed.errors import UsageError

_SHOW_EVERY_SECONDS = 0.2
_LINE_EVERY_SECONDS = 20.0
"""Where no line can be drawn anew: in a file, or through a pipe."""
_LONG_SECONDS = 5.0


def in_words(seconds: float) -> str:
    """Return a duration as people say it."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min"


def megabytes(size_bytes: float) -> str:
    """Return a size in MB, as small as 1 kB."""
    return f"{size_bytes / 1e6:,.0f} MB" if size_bytes >= 10e6 else f"{size_bytes / 1e6:,.3g} MB"


class Talk:
    """Tells a person what happens."""

    def __init__(self, steps: int, *, stream: TextIO | None = None) -> None:
        """Count the steps to come.

        Args:
            stream: standard error if not given.
        """
        self._stream = stream or sys.stderr
        self._steps = steps
        self._step = 0
        self._started_at = self._shown_at = time.monotonic()
        self._open_line = False

    def step(self, text: str) -> None:
        """Say which step begins."""
        self._step += 1
        self.say(f"[{self._step}/{self._steps}] {text}")
        self._started_at = self._shown_at = time.monotonic()

    def say(self, text: str) -> None:
        """Write a line of its own."""
        self._end_line()
        self._write(f"{text}\n")

    def progress(self, done_bytes: int, total_bytes: int) -> None:
        """Show how far the step is, and the time left when it is long."""
        now = time.monotonic()
        drawn_anew = self._stream.isatty()
        pause = _SHOW_EVERY_SECONDS if drawn_anew else _LINE_EVERY_SECONDS
        if now - self._shown_at < pause:
            return
        self._shown_at = now
        line = f"      {min(100, 100 * done_bytes // max(1, total_bytes))} % of {megabytes(total_bytes)}"
        taken = now - self._started_at
        if done_bytes and taken > _LONG_SECONDS:
            left = taken * max(0, total_bytes - done_bytes) / done_bytes
            line += f", about {in_words(left)} left"
        if drawn_anew:
            width = shutil.get_terminal_size().columns - 1
            self._write(f"\r{line[:width].ljust(min(width, 60))}")
            self._open_line = True
        else:
            self._write(f"{line}\n")

    def agreed(self, question: str) -> bool:
        """Ask; only a written yes is one.

        Raises:
            UsageError: nobody can answer.
        """
        self._end_line()
        self._write(f"{question} [yes/no] ")
        for _ in range(3):
            answer = sys.stdin.readline() if sys.stdin else ""
            if not answer:
                self._write("\n")
                raise UsageError("The question was not answered.", hint="--yes answers it beforehand.")
            if answer.strip().lower() in ("y", "yes", "n", "no"):
                return answer.strip().lower() in ("y", "yes")
            self._write("Please write yes or no: ")
        return False

    def close(self) -> None:
        """End a line that is drawn anew."""
        self._end_line()

    def _end_line(self) -> None:
        if self._open_line:
            self._write("\n")
            self._open_line = False

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
