"""What a run says to the tester: the estimate before it, the line of progress, the end."""

import shutil
import sys
import time
from collections.abc import Sequence
from typing import TextIO

from edgemed.records import Suite
from edgemed.terminal_text import clean
from edgemed_benchmarks.plan import lasting_seconds
from edgemed_benchmarks.runner import Progress
from edgemed_benchmarks.starting import Prepared

_TERMINAL_SECONDS = 0.2
_PLAIN_SECONDS = 30.0


def plan_lines(prepared: Prepared, labels: Sequence[str]) -> list[str]:
    """Return what is going to happen, before it begins."""
    lines = []
    for label, speed in zip(labels, prepared.speeds, strict=True):
        lines.append(
            f"{label}: loads in {speed.load_seconds:.1f} s, reads {_rate(speed.prefill_rate)} and writes "
            f"{_rate(speed.decode_rate)} tokens/s here"
        )
    plan = prepared.plan
    lasting: dict[Suite, float] = {}
    for block in plan.blocks:
        arm_material, arm_speed = prepared.materials[block.arm], prepared.speeds[block.arm]
        lasting.update(lasting_seconds(prepared.settings, block, arm_material, arm_speed))
    each = " for each model" if len(labels) > 1 else ""
    counts = ", ".join(
        f"{suite} for {readable_seconds(lasting[suite])} (about {count})"
        if suite in lasting
        else f"{count} {suite}"
        for suite, count in plan.counts.items()
    )
    lines.append(f"Questions{each}: {counts}.")
    lines += [f"Left out: {suite} ({reason})." for suite, reason in plan.skipped.items()]
    if not all(speed.answers_known for speed in prepared.speeds):
        lines.append(
            "How long the answers are is not known: the model is slow here, and its pack does not say. "
            "The run may end early."
        )
    lines.append(f"This takes about {readable_seconds(prepared.seconds)}. Leave the machine alone meanwhile.")
    return lines


def readable_seconds(seconds: float) -> str:
    """Return a duration as people read it: 12 s, 3:05 min, 2:10 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02} h"


class ProgressLine:
    """One line that changes on a terminal; elsewhere a plain line twice a minute."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """`stream` is standard error if not given."""
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream.isatty()
        self._shown_at = 0.0
        self._width = 0

    def __call__(self, progress: Progress) -> None:
        """Show how far the run is."""
        left = f", about {readable_seconds(progress.seconds_left)} left" if progress.done else ""
        self._show(f"{100 * progress.share:.0f} % ({progress.done} answers){left}: {progress.what}")

    def step(self, words: str) -> None:
        """Show what is going on before the run."""
        self._shown_at = 0.0
        self._show(words)

    def count(self, done: int, total: int, words: str) -> None:
        """Show how far something else is."""
        self._show(f"{done}/{total} {words}")

    def clear(self) -> None:
        """Leave a terminal's line empty for what is written next."""
        if self._is_terminal and self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._stream.flush()
            self._width = 0

    def _show(self, text: str) -> None:
        now = time.monotonic()
        if self._shown_at and now - self._shown_at < (
            _TERMINAL_SECONDS if self._is_terminal else _PLAIN_SECONDS
        ):
            return
        self._shown_at = now
        line = clean(text).replace("\n", " ")
        if self._is_terminal:
            line = line[: shutil.get_terminal_size((80, 24)).columns - 1]
            # Spaces, not a control sequence: older Windows consoles print those.
            self._stream.write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self._stream.write(line + "\n")
        self._stream.flush()


def _rate(tokens_per_second: float) -> str:
    return f"{tokens_per_second:.1f}" if tokens_per_second < 100 else f"{tokens_per_second:,.0f}"
