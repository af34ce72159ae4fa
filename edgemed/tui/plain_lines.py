"""Plain text as lines of a fixed width, folded at words."""

import functools
import io

from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from rich.text import Text


def plain_lines(text: str, width: int) -> list[list[Segment]]:
    """Return the lines of a text, each at most `width` cells wide. The text must be clean."""
    console = _console(width)
    return [
        [Segment(line.plain, Style.null())]
        for paragraph in text.split("\n")
        for line in Text(paragraph).wrap(console, width)
    ]


@functools.lru_cache(maxsize=4)
def _console(width: int) -> Console:
    return Console(width=width, file=io.StringIO(), color_system=None, legacy_windows=False)
