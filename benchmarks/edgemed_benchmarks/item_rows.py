"""The rows of a table of questions: JSON Lines, a JSON list or object, or CSV, each with its number."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from edgemed.metrics import normalise
from edgemed_benchmarks.errors import ItemError
from edgemed_benchmarks.item_files import check_size, line_error, numbered_lines
from edgemed_benchmarks.item_shapes import Row

CSV_SUFFIXES = (".csv", ".tsv")
MMLU_COLUMNS = ("question", "a", "b", "c", "d", "answer")
"""MMLU's own CSV files have no header."""


class NumberedRow(NamedTuple):
    """One row; the number is that of its line, or of its entry in a JSON list."""

    number: int
    row: Row


def read_rows(path: Path, columns: tuple[str, ...] = ()) -> list[NumberedRow]:
    """Return the rows of a file, column names in lower case.

    Args:
        path: `.csv` and `.tsv` are tables, `.json` may be one list or object, all else is JSON Lines.
        columns: of a CSV file without header.

    Raises:
        ItemError: the file is missing, empty, too large, no UTF-8, or a line cannot be read; it is named.
    """
    if path.suffix.lower() in CSV_SUFFIXES:
        return list(_csv_rows(path, columns))
    whole = _whole_json(path) if path.suffix.lower() == ".json" else None
    return list(_json_lines(path)) if whole is None else whole


def _json_lines(path: Path) -> Iterator[NumberedRow]:
    for number, line in numbered_lines(path):
        try:
            row = msgspec.json.decode(line)
        except msgspec.DecodeError as error:
            raise line_error(path, number, f"is no JSON: {error}") from error
        if not isinstance(row, dict):
            raise line_error(path, number, "is no JSON object")
        yield NumberedRow(number, _lower(row))


def _whole_json(path: Path) -> list[NumberedRow] | None:
    """Return the entries of a file that is one JSON value; None if it is not."""
    check_size(path)
    try:
        value = msgspec.json.decode(path.read_bytes())
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    except OSError as error:
        raise ItemError(f"{path} cannot be read: {error.strerror}.", hint="Check the disk.") from error
    rows = []
    for number, row in enumerate(_entries(value), 1):
        if not isinstance(row, dict):
            raise line_error(path, number, "is no JSON object")
        rows.append(NumberedRow(number, _lower(row)))
    return rows


def _entries(value: Any) -> list[Any]:
    """Return the rows of a list, or of an object of rows by id (PubMedQA), or one row."""
    if isinstance(value, list):
        return value
    if isinstance(value, dict) and value and all(isinstance(each, dict) for each in value.values()):
        return [{"id": key, **each} for key, each in value.items()]
    return [value]


def _csv_rows(path: Path, columns: tuple[str, ...]) -> Iterator[NumberedRow]:
    # `numbered_lines` names what is no UTF-8; a row may go over several lines.
    lines = [line + "\n" for _number, line in _every_line(path)]
    reader = csv.reader(lines, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
    names = [name.lower() for name in columns]
    number = 1
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise line_error(path, number, f"is no CSV: {error}") from error
        if cells is None:
            return
        if any(cell.strip() for cell in cells):
            if not names:
                names = [normalise(cell) for cell in cells]
            elif len(cells) != len(names):
                raise line_error(path, number, f"has {len(cells)} columns, and the header {len(names)}")
            else:
                yield NumberedRow(number, dict(zip(names, cells, strict=True)))
        number = reader.line_num + 1


def _every_line(path: Path) -> Iterator[tuple[int, str]]:
    """Yield all lines, empty ones too: they count."""
    expected = 1
    for number, line in numbered_lines(path):
        yield from ((missing, "") for missing in range(expected, number))
        yield number, line
        expected = number + 1


def _lower(row: dict[str, Any]) -> Row:
    return {key.lower(): value for key, value in row.items()}
