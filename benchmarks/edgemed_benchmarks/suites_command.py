"""The commands suites list and suites import."""

from pathlib import Path
from typing import Any, NamedTuple

from edgemed_benchmarks.errors import ItemError
from edgemed_benchmarks.item_files import ItemSuite, read_item_set, set_paths, shipped_folder
from edgemed_benchmarks.items_import import import_items


class Listed(NamedTuple):
    """One set of questions."""

    name: str
    suite: str
    items: int
    source: str
    license: str
    shipped: bool
    sha256: str
    problem: str = ""
    """Why it cannot be used; empty if it can."""


class ImportedSet(NamedTuple):
    """What is shown of a set that was taken in."""

    lines: list[str]
    as_json: dict[str, Any]


def list_sets() -> list[Listed]:
    """Return all sets on this computer, also those that cannot be used."""
    found = []
    for name, path in set_paths().items():
        shipped = path.parent == shipped_folder()
        try:
            each = read_item_set(path)
        except ItemError as error:
            found.append(Listed(name, "?", 0, "", "", shipped, "", error.message))
            continue
        found.append(
            Listed(name, each.suite, len(each.items), each.source, each.license, shipped, each.sha256)
        )
    return found


def import_set(
    path: Path,
    *,
    name: str,
    file_format: str | None,
    suite: ItemSuite,
    source: str,
    licence: str,
    training: Path | None,
    replace: bool,
) -> ImportedSet:
    """Take in a set.

    Raises:
        ItemError: the file or the name cannot be used; the line is named.
        StorageError: it cannot be saved.
    """
    taken = import_items(
        path,
        name=name,
        file_format=file_format,
        suite=suite,
        source=source,
        licence=licence,
        training=training,
        replace=replace,
    )
    kept = taken.item_set
    lines = [
        f"{kept.name}: {len(kept.items)} questions of the suite {kept.suite}, read as {taken.format}",
        f"source {kept.source or 'not stated'}, license {kept.license or 'not stated'}",
        f"SHA-256 {kept.sha256}",
    ]
    if taken.held_back:
        lines.append(f"{taken.held_back} left out: the publisher does not tell the right answer.")
    if taken.repeated:
        lines.append(f"{taken.repeated} left out: asked before in the same words.")
    if taken.unusable:
        shown = ", ".join(map(str, taken.unusable[:10]))
        lines.append(f"{len(taken.unusable)} left out for a slip of the publisher's, in rows {shown}.")
    if taken.overlap is not None:
        lines.append(f"In the training data too: {taken.overlap}")
    lines.append(f"Ask it with: edgemed-bench run --items {kept.name}")
    return ImportedSet(
        lines,
        {
            "name": kept.name,
            "suite": kept.suite,
            "items": len(kept.items),
            "sha256": kept.sha256,
            "format": taken.format,
            "held_back": taken.held_back,
            "repeated": taken.repeated,
            "unusable": taken.unusable,
            "overlap": None if taken.overlap is None else taken.overlap._asdict(),
        },
    )
