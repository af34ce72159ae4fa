"""The questions of a run, found again on this computer by name and SHA-256."""

from collections.abc import Iterable
from typing import NamedTuple

from edgemed.records import Item, ItemFile
from edgemed_benchmarks.errors import ItemError
from edgemed_benchmarks.item_files import read_item_set, set_paths
from edgemed_benchmarks.journal import Run


class FoundItem(NamedTuple):
    """A question, and the set it is of."""

    item_set: str
    item: Item


def items_of_runs(runs: Iterable[Run]) -> dict[tuple[str, str], FoundItem]:
    """Return the questions of the quality and safety suites by suite and id; those not found are left out."""
    files = {file.sha256: file for run in runs for file in run.start.item_files}
    found: dict[tuple[str, str], FoundItem] = {}
    for file in files.values():
        found.update(_items_of(file))
    return found


def _items_of(file: ItemFile) -> dict[tuple[str, str], FoundItem]:
    path = set_paths().get(file.name)
    if path is None:
        return {}
    try:
        item_set = read_item_set(path)
    except ItemError:
        # Not the file that the run used: as good as not there.
        return {}
    if item_set.sha256 != file.sha256 or item_set.suite not in ("quality", "safety"):
        return {}
    return {(item_set.suite, item.id): FoundItem(item_set.name, item) for item in item_set.items}
