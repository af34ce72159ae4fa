"""The full-screen chat with an engine that writes a word at a time, for tests: `python -m tests.slow_app`.

Each answer counts, so that a test can tell from the store how much of it was lost.
"""

import itertools
import os
import sys
import time

from edgemed import operating_system
from edgemed.tui.app import run_full_screen
from tests.faces import a_control
from tests.fakes import FakeEngine, Script


class Shown:
    """Notes on the disk which words were handed out, and when."""

    def __init__(self) -> None:
        path = os.environ.get("WORDS_FILE")
        self._file = open(path, "a", encoding="utf-8", buffering=1) if path else None  # noqa: SIM115, PTH123

    def note(self, word: str) -> None:
        if self._file is not None:
            self._file.write(f"{time.time():.3f} {word}\n")


def main() -> None:
    """Run it; WORDS_PER_SECOND and WORDS say how long an answer takes."""
    operating_system.utf8_standard_streams()
    seconds = 1 / float(os.environ.get("WORDS_PER_SECOND", "20"))
    words = int(os.environ.get("WORDS", "100000"))
    shown = Shown()
    number = itertools.count()

    def pause(_piece: int) -> None:
        time.sleep(seconds)
        shown.note(f"w{next(number)}")

    script = Script(pieces=[f"w{word} " for word in range(words)], before_piece=pause)
    control = a_control(FakeEngine([script]))
    control.change(model="tiny-medical")
    sys.exit(run_full_screen(control))


if __name__ == "__main__":
    main()
