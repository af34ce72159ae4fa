"""JSON and JSON Lines: Medical Meadow's list, instruction/input/output, prompt/completion, chat messages."""

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from edgemed_training.errors import DataError
from edgemed_training.readers.columns import ReadOptions, Row, find_columns, pairs_from_rows
from edgemed_training.readers.plain_file import read_text
from edgemed_training.records import SourcePair

_CONVERSATIONS = {"messages", "conversations", "prompt", "completion"}
_BYTE = re.compile(r" ?\(byte ([0-9]+)\)")


def read_json(path: Path, options: ReadOptions) -> tuple[list[SourcePair], int]:
    """Return the pairs of a JSON or JSON Lines file, and how many rows have no answer or are left out.

    The columns are those of the first row.

    Raises:
        DataError: broken JSON (the line is named), not a list of objects, unknown columns, nulls.
    """
    text = read_text(path)
    rows = list(_rows(path, text))
    if not rows:
        raise DataError(f"{path} is an empty list.", hint="Name a file with questions and answers.")
    columns = find_columns(path, list(rows[0][1]), options.columns)
    return pairs_from_rows(path, rows, columns, options)


def _rows(path: Path, text: str) -> Iterator[tuple[str, Row]]:
    if _is_json_lines(text):
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield f"line {number}", _object(path, f"line {number}", _decode(path, line, number))
        return
    for number, row in enumerate(_list_of_rows(path, _decode(path, text, 1)), 1):
        yield f"row {number}", _object(path, f"row {number}", row)


def _is_json_lines(text: str) -> bool:
    """Whether the first line that is not empty is an object of its own."""
    first = text.lstrip().split("\n", 1)[0]
    if not first.startswith("{"):
        return False
    try:
        return _wrapped(msgspec.json.decode(first)) is None
    except (msgspec.DecodeError, RecursionError):
        return "\n" in text.strip() and not first.strip().endswith(("{", ",", "[", ":"))


def _decode(path: Path, text: str, first_line: int) -> object:
    try:
        return msgspec.json.decode(text)
    except RecursionError as error:
        raise DataError(
            f"{path} line {first_line} is nested too deep.", hint="Write a list of simple objects."
        ) from error
    except msgspec.DecodeError as error:
        found = _BYTE.search(str(error))
        # Without a place the text ended too early.
        before = text.rstrip().encode()[: int(found[1]) if found else None]
        line = first_line + before.count(b"\n")
        raise DataError(
            f"{path} is broken JSON in line {line}: {_BYTE.sub('', str(error))}.",
            hint="JSON Lines needs one whole object in each line. Copy a file that was cut off again.",
        ) from error


def _list_of_rows(path: Path, value: object) -> list[object]:
    if isinstance(value, list):
        return value
    wrapped = _wrapped(value)
    if wrapped is not None:
        return wrapped
    raise DataError(
        f"{path} is not a list of questions and answers.",
        hint="Write a list of objects, or JSON Lines with one object in each line.",
    )


def _wrapped(value: object) -> list[object] | None:
    """Return the rows of {"data": [{…}, …]}; None for any other object, a single conversation included."""
    if not isinstance(value, dict):
        return None
    lists = {key: entry for key, entry in value.items() if isinstance(entry, list) and entry}
    if len(lists) != 1 or lists.keys() & _CONVERSATIONS:
        return None
    rows = next(iter(lists.values()))
    return rows if isinstance(rows[0], dict) else None


def _object(path: Path, place: str, value: object) -> Row:
    if not isinstance(value, dict):
        raise DataError(
            f"{path} {place} is a {type(value).__name__}, not an object with named values.",
            hint='Each row is written {"question": "…", "answer": "…"}.',
        )
    return value
