"""Models on sticks and other plugged-in media, found without reading them whole. Used by the chat."""

import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgemed import machine, models
from edgemed.errors import EdgemedError
from edgemed.manifest import MANIFEST_NAME

DEEPEST = 2
"""Folders below the medium's own."""
MOST_ENTRIES = 5_000
LONGEST_SECONDS = 3.0
"""A slow or broken stick must not hold anybody up."""


@dataclasses.dataclass(frozen=True)
class FoundModel:
    """A model or adapter on a medium."""

    path: Path
    """What `models.install_model` takes: a pack's folder, or a GGUF file."""
    name: str
    medium: machine.Medium
    examined: models.Examined | None
    """None where `problem` says why."""
    problem: str
    """One sentence; empty when it can be installed."""


def find_models(media: Sequence[machine.Medium]) -> list[FoundModel]:
    """Return the packs and single GGUF files on some media, at most two folders deep."""
    until = time.monotonic() + LONGEST_SECONDS
    return [found for medium in media for found in _on_medium(medium, until)]


def _on_medium(medium: machine.Medium, until: float) -> Iterator[FoundModel]:
    left = MOST_ENTRIES
    folders = [(medium.path, 0)]
    while folders:
        folder, depth = folders.pop(0)
        try:
            entries = []
            with os.scandir(folder) as scanned:
                for entry in scanned:
                    left -= 1
                    if left < 0 or time.monotonic() > until:
                        return
                    entries.append(entry)
            if any(entry.name == MANIFEST_NAME for entry in entries):
                yield _examine(folder, medium)
                continue
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.startswith((".", "$")) or entry.is_symlink():
                    continue
                if entry.is_dir() and depth < DEEPEST:
                    folders.append((Path(entry.path), depth + 1))
                elif entry.name.lower().endswith(".gguf") and entry.is_file() and _is_first(entry.name):
                    yield _examine(Path(entry.path), medium)
        except OSError:
            # Pulled out, or not for this user: nothing there can be installed.
            continue


def _is_first(name: str) -> bool:
    """Whether a name is that of a whole file or of the first shard of a split one."""
    return "-of-" not in name or "-00001-of-" in name


def _examine(path: Path, medium: machine.Medium) -> FoundModel:
    try:
        examined = models.examine_model(path)
    except EdgemedError as error:
        return FoundModel(path, path.stem, medium, None, error.message)
    return FoundModel(path, examined.name, medium, examined, "")
