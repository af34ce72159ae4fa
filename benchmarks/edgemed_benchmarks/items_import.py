"""Take a published or own set of questions into the data folder, where `run --suite` finds it.

The set keeps its source and licence, and nothing of it ever ships with edgemed.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from edgemed import operating_system
from edgemed.errors import StorageError
from edgemed.metrics import normalise
from edgemed.records import Item
from edgemed_benchmarks.errors import ItemError
from edgemed_benchmarks.item_files import (
    SUFFIX,
    Header,
    ItemSet,
    ItemSuite,
    encode_item_set,
    fault_of,
    imported_folder,
    line_error,
    read_item_set,
    shipped_folder,
)
from edgemed_benchmarks.item_overlap import Overlap, find_overlap
from edgemed_benchmarks.item_rows import CSV_SUFFIXES, MMLU_COLUMNS, NumberedRow, read_rows
from edgemed_benchmarks.item_shapes import (
    PUBLISHED,
    Reader,
    Row,
    RowFault,
    count_from_one,
    medmcqa,
    published_name,
    published_reader,
    table_reader,
)

FORMATS = (*PUBLISHED, "jsonl", "csv")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,60}")
_COLUMNS_HINT = (
    "Name the columns question and answer, or question, option_a, option_b, … and answer; "
    "or say what the file is with --format."
)
_MEDMCQA_OPTIONS = 4
_SLIPS, _SLIPS_SHARE = 3, 0.02
"""Published sets have slips: so many unusable rows are left out and counted; with more it is refused."""


class Imported(NamedTuple):
    """What was taken in."""

    item_set: ItemSet
    format: str
    held_back: int
    """Rows whose right answer the publisher does not tell: left out."""
    repeated: int
    """Rows that ask with the same words and options what an earlier row asks: left out."""
    unusable: list[int]
    """Numbers of rows with a slip of the publisher's, such as the same option twice: left out."""
    overlap: Overlap | None


class _Read(NamedTuple):
    items: list[Item]
    held_back: int
    repeated: int
    unusable: list[int]


def import_items(
    path: Path,
    *,
    name: str,
    file_format: str | None = None,
    suite: ItemSuite = "quality",
    source: str = "",
    licence: str = "",
    training: Path | None = None,
    replace: bool = False,
) -> Imported:
    """Read a set in one of `FORMATS`, check it and write it to `$EDGEMED_HOME/suites/NAME.jsonl`.

    Args:
        path: JSON Lines, a JSON list or object, or CSV; UTF-8.
        name: what the set will be called: small letters, digits, - and _.
        file_format: None tells it by the columns.
        suite: in which the questions are asked.
        source: where they are from; needed unless the format is a published set.
        licence: as `source`.
        training: a file of training texts; questions that stand in it are counted.
        replace: overwrite a set of this name.

    Raises:
        ItemError: the file cannot be used, and which line; or the name is taken.
        StorageError: the data folder cannot be written.
    """
    target = _target(name, replace=replace)
    if file_format not in (None, *FORMATS):
        raise ItemError(f"There is no format {file_format!r}.", hint=f"Choose one of {', '.join(FORMATS)}.")
    without_header = file_format == "mmlu" and path.suffix.lower() in CSV_SUFFIXES
    rows = read_rows(path, MMLU_COLUMNS if without_header else ())
    if not rows:
        raise ItemError(f"{path} holds no questions.", hint=_COLUMNS_HINT)
    found, reader = _reader(path, rows[0], file_format)
    published = PUBLISHED.get(found)
    header = Header(
        edgemed_items=1,
        name=name,
        suite=suite,
        source=source or (published.source if published else ""),
        license=licence or (published.license if published else ""),
        note=f"Imported from {path.name} as {found}.",
    )
    if not header.source or not header.license:
        raise ItemError(
            f"Where the questions of {path} are from and under which licence is not known.",
            hint="Say it with --source and --license: both stand beside every number.",
        )
    read = _items(path, rows, reader, name)
    overlap = None if training is None else find_overlap(read.items, training)
    _write(target, encode_item_set(header, read.items))
    return Imported(read_item_set(target), found, read.held_back, read.repeated, read.unusable, overlap)


def _target(name: str, *, replace: bool) -> Path:
    if not _NAME.fullmatch(name):
        raise ItemError(
            f"{name!r} cannot be the name of a set.",
            hint="Use small letters, digits, - and _, such as medqa-test.",
        )
    target = imported_folder() / f"{name}{SUFFIX}"
    if (shipped_folder() / target.name).exists():
        raise ItemError(f"The set {name} comes with edgemed.", hint="Choose another name.")
    if target.exists() and not replace:
        raise ItemError(f"There is a set {name} already.", hint="Choose another name, or use --replace.")
    return target


def _reader(path: Path, first: NumberedRow, file_format: str | None) -> tuple[str, Reader]:
    """Return the format's name and how its rows are read."""
    columns = set(first.row)
    name = file_format or published_name(columns)
    reader = published_reader(name, columns) if name in PUBLISHED else None
    if reader is None and name not in PUBLISHED:
        reader = table_reader(columns)
    if reader is None:
        what = f"as {name}" if name else "as a table of questions"
        raise ItemError(
            f"{path}, line {first.number} cannot be read {what}: {_named(columns)}.",
            hint=_COLUMNS_HINT,
        )
    return name or ("csv" if path.suffix.lower() in CSV_SUFFIXES else "jsonl"), reader


def _named(columns: set[str]) -> str:
    """Return the columns' names in words. Without a header they would be a question: it is not shown."""
    if all(re.fullmatch(r"[\w -]{1,30}", column) for column in columns):
        return f"its columns are {', '.join(sorted(columns))}"
    return "its first line holds no names of columns"


def _items(path: Path, rows: Sequence[NumberedRow], reader: Reader, name: str) -> _Read:
    """Read all rows; each gets an id that no other set has."""
    read = [(number, _item(path, number, reader, row)) for number, row in rows]
    kept = [(number, item) for number, item in read if item.correct is not None or not item.options]
    if reader is medmcqa:
        kept = _with_counted_answers(path, kept)
    if not kept:
        raise ItemError(
            f"{path} tells no right answer: its publisher holds them back.",
            hint="Use the development or validation part of the set.",
        )
    items: list[Item] = []
    unusable: list[int] = []
    asked: set[tuple[str, ...]] = set()
    ids: set[str] = set()
    for number, item in kept:
        item_id = _new_id(name, item.id or str(number), ids)
        new = msgspec.structs.replace(item, id=item_id)
        if fault := fault_of(new):
            unusable.append(number)
            if len(unusable) > max(_SLIPS, _SLIPS_SHARE * len(kept)) or len(unusable) == len(kept):
                raise line_error(path, number, fault)
            continue
        words = (normalise(new.question), *sorted(new.options), *new.passages)
        if words not in asked:
            asked.add(words)
            items.append(new)
    return _Read(items, len(read) - len(kept), len(kept) - len(items) - len(unusable), unusable)


def _item(path: Path, number: int, reader: Reader, row: Row) -> Item:
    try:
        return reader(row)
    except RowFault as fault:
        raise line_error(path, number, str(fault)) from fault
    except KeyError as missing:
        raise line_error(path, number, f"has no column {missing}") from missing


def _with_counted_answers(path: Path, kept: list[tuple[int, Item]]) -> list[tuple[int, Item]]:
    """Return MedMCQA's items with the answer counted from 0, whichever way the file counts."""
    answers = {item.correct for _number, item in kept}
    if not kept or 0 in answers:
        return kept
    if _MEDMCQA_OPTIONS not in answers:
        raise ItemError(
            f"{path} does not show whether its column cop counts from 0 or from 1.",
            hint="Import more of the file: where the first or the fourth option is right, it shows.",
        )
    counted = count_from_one([item for _number, item in kept])
    return [(number, item) for (number, _item), item in zip(kept, counted, strict=True)]


def _new_id(name: str, wanted: str, taken: set[str]) -> str:
    item_id, again = f"{name}-{wanted}", 1
    while item_id in taken:
        again += 1
        item_id = f"{name}-{wanted}-{again}"
    taken.add(item_id)
    return item_id


def _write(target: Path, data: bytes) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        operating_system.write_atomically(target, data)
    except OSError as error:
        raise StorageError(
            f"{target} cannot be written: {error.strerror}.", hint="Check the disk and the data folder."
        ) from error
