"""Whether a model may have seen the questions: words in a row that they share with a training file.

Such a question measures memory. Found are copies; a question put in other words is not.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from edgemed.metrics import words
from edgemed.records import Item
from edgemed_benchmarks.item_files import numbered_lines

WORDS_IN_A_ROW = 8
_FEWEST = 5
"""A shorter question is too common to tell anything."""


class Overlap(NamedTuple):
    """What a set shares with a training file."""

    items: int
    """Questions that were long enough to be looked for."""
    shared: list[str]
    """Ids of those with `WORDS_IN_A_ROW` words in a row in common, or all their words if they are fewer."""
    too_short: int

    def __str__(self) -> str:
        """Say it in a sentence."""
        return (
            f"{len(self.shared)} of {self.items} questions share {WORDS_IN_A_ROW} words in a row with the "
            f"training file; {self.too_short} are too short to tell."
        )


def find_overlap(items: Sequence[Item], training: Path) -> Overlap:
    """Look for the items' questions in a training file: JSON Lines (every text in it counts) or plain text.

    Memory grows with the items, not with the training file.

    Raises:
        ItemError: the training file cannot be read; the line is named.
    """
    wanted: dict[int, dict[tuple[str, ...], set[str]]] = {}
    looked_for = 0
    for item in items:
        parts = words(item.question)
        size = min(WORDS_IN_A_ROW, len(parts))
        if size < _FEWEST:
            continue
        looked_for += 1
        for gram in _grams(parts, size):
            wanted.setdefault(size, {}).setdefault(gram, set()).add(item.id)
    shared: set[str] = set()
    for text in _texts(training):
        parts = words(text)
        for size, grams in wanted.items():
            for gram in _grams(parts, size):
                shared |= grams.get(gram, set())
    order = [item.id for item in items if item.id in shared]
    return Overlap(looked_for, order, len(items) - looked_for)


def _grams(parts: Sequence[str], size: int) -> Iterator[tuple[str, ...]]:
    return zip(*(parts[start:] for start in range(size)), strict=False)


def _texts(path: Path) -> Iterator[str]:
    for _number, line in numbered_lines(path):
        try:
            yield from _strings(msgspec.json.decode(line))
        except msgspec.DecodeError:
            yield line


def _strings(value: object) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)
