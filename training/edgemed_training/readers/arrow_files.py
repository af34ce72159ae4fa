"""Parquet files and folders of `datasets.save_to_disk`, read by pyarrow alone.

The datasets library is not needed: its own reading may look at the network and at Python code in a folder.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from edgemed_training.errors import DataError
from edgemed_training.libraries import prepare_libraries
from edgemed_training.readers.columns import ReadOptions, Row, find_columns, pairs_from_rows
from edgemed_training.readers.plain_file import MAX_BYTES
from edgemed_training.records import SourcePair

STATE_NAME = "state.json"
SPLITS_NAME = "dataset_dict.json"
_COPY_AGAIN = "Copy the file again; its end may be missing."


def read_parquet(path: Path, options: ReadOptions) -> tuple[list[SourcePair], int]:
    """Return the pairs of one Parquet file, and how many rows have no answer or were left out as null.

    Raises:
        DataError: damaged, too large, unknown columns, nulls.
        MissingExtra: pyarrow is not installed.
    """
    prepare_libraries("pyarrow")
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            size = sum(
                file.metadata.row_group(number).total_byte_size for number in range(file.num_row_groups)
            )
            _refuse_too_large(path, size)
            columns = find_columns(path, file.schema_arrow.names, options.columns)
            needed = sorted({column for column in columns if column})
            return pairs_from_rows(path, _rows(file.iter_batches(columns=needed)), columns, options)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a sound Parquet file: {error}.", hint=_COPY_AGAIN) from error


def read_saved_dataset(folder: Path, options: ReadOptions) -> tuple[list[SourcePair], int, list[Path]]:
    """Return the pairs of a `save_to_disk` folder with all its splits, the unanswered, and the files read.

    Raises:
        DataError: a file of the folder is missing or damaged, unknown columns, nulls.
        MissingExtra: pyarrow is not installed.
    """
    parts = [folder]
    if (folder / SPLITS_NAME).is_file():
        splits = _json(folder / SPLITS_NAME).get("splits")
        parts = [folder / _inside(folder, name) for name in splits] if isinstance(splits, list) else []
    files = [file for part in parts for file in _data_files(part)]
    if not files:
        raise DataError(f"{folder} lists no data files.", hint="Save the dataset again with save_to_disk.")
    pairs: list[SourcePair] = []
    unanswered = 0
    for file in files:
        found, without = _read_arrow(file, options, label=f"{folder.name}/{file.parent.name}/{file.name}")
        pairs += found
        unanswered += without
    return pairs, unanswered, files


def _data_files(part: Path) -> list[Path]:
    state = _json(part / STATE_NAME)
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise DataError(
            f"{part} is a selection of rows over other rows.",
            hint="Call flatten_indices() on the dataset before save_to_disk.",
        )
    listed = state.get("_data_files")
    if not isinstance(listed, list):
        raise DataError(f"{part / STATE_NAME} does not list the data files.", hint=_COPY_AGAIN)
    return [
        part / _inside(part, entry.get("filename") if isinstance(entry, dict) else None) for entry in listed
    ]


def _inside(folder: Path, name: object) -> str:
    """Return a file's name, which must not lead out of the folder."""
    if not isinstance(name, str) or not name or Path(name).name != name or "\\" in name:
        raise DataError(f"{folder} lists a file outside itself: {name!r}.", hint="Do not use this folder.")
    return name


def _json(path: Path) -> dict[str, object]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, object])
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.", hint=_COPY_AGAIN) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not valid: {error}.", hint=_COPY_AGAIN) from error


def _read_arrow(path: Path, options: ReadOptions, *, label: str) -> tuple[list[SourcePair], int]:
    prepare_libraries("pyarrow")
    import pyarrow

    try:
        _refuse_too_large(path, path.stat().st_size)
        with pyarrow.OSFile(str(path)) as file, pyarrow.ipc.open_stream(file) as stream:
            columns = find_columns(path, stream.schema.names, options.columns)
            named = Path(label)
            return pairs_from_rows(named, _rows(stream), columns, options)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a sound Arrow file: {error}.", hint=_COPY_AGAIN) from error


def _refuse_too_large(path: Path, size_bytes: int) -> None:
    if size_bytes > MAX_BYTES:
        raise DataError(
            f"{path} holds more than {MAX_BYTES // 2**30} GiB.", hint="Divide it, and name all parts."
        )


def _rows(batches: Any) -> Iterator[tuple[str, Row]]:
    number = 0
    for batch in batches:
        # Arrow believes the lengths that a file states: a damaged one once ended the process.
        batch.validate(full=True)
        for row in batch.to_pylist():
            number += 1
            yield f"row {number}", row
