"""CSV and TSV: Kaggle's `medquad.csv` and every other table with a header line."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from edgemed_training.errors import DataError
from edgemed_training.readers.columns import ReadOptions, Row, find_columns, pairs_from_rows
from edgemed_training.readers.plain_file import MAX_BYTES, read_text
from edgemed_training.records import SourcePair

_DELIMITERS = ",;\t"


def read_csv(path: Path, options: ReadOptions) -> tuple[list[SourcePair], int]:
    """Return the pairs of a CSV file, and how many rows were left out as null.

    Raises:
        DataError: broken quotation marks or a row of another length (the line is named), or unknown columns.
    """
    text = read_text(path)
    rows = _rows(path, text, _delimiter(text))
    header_place, header = next(rows)
    if len(set(header)) < len(header):
        raise DataError(
            f"{path} {header_place} names a column twice: {', '.join(header)}.", hint="Rename one of them."
        )
    columns = find_columns(path, header, options.columns)
    return pairs_from_rows(path, _as_dicts(path, header, rows), columns, options)


def _delimiter(text: str) -> str:
    """Return the delimiter that divides the header line most often."""
    header = text.lstrip().split("\n", 1)[0]
    return max(_DELIMITERS, key=lambda sign: len(next(csv.reader([header], delimiter=sign), [])))


def _rows(path: Path, text: str, delimiter: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the line in which each row begins, and its fields."""
    # A field may be a whole leaflet; the module's own limit of 128 KiB holds for all its users.
    csv.field_size_limit(min(MAX_BYTES, 2**31 - 1))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    begins = 1
    while True:
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise _broken(path, begins, reader.line_num, error) from error
        if fields is None:
            return
        if fields:
            yield f"line {begins}", fields
        begins = reader.line_num + 1


def _broken(path: Path, begins: int, line: int, error: csv.Error) -> DataError:
    if "unexpected end of data" in str(error):
        return DataError(
            f"{path} ends inside the row that begins in line {begins}: a quotation mark is not closed.",
            hint="Copy the file again, whole; or take this row out, or close its quotation mark.",
        )
    return DataError(
        f"{path} has a broken quotation mark in line {line}, the row beginning in line {begins}: {error}.",
        hint='Write a quotation mark inside a quoted field twice: "".',
    )


def _as_dicts(
    path: Path, header: list[str], rows: Iterator[tuple[str, list[str]]]
) -> Iterator[tuple[str, Row]]:
    for place, fields in rows:
        if len(fields) != len(header):
            raise DataError(
                f"{path} {place} has {len(fields)} fields, but the header has {len(header)}.",
                hint="A field with a comma needs quotation marks. Copy a file that was cut off again.",
            )
        yield place, dict(zip(header, fields, strict=True))
