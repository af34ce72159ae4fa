"""Writes a report's file so that it is whole or not there."""

from pathlib import Path

from edgemed.errors import StorageError
from edgemed.operating_system import write_atomically


def write_report(path: Path, text: str) -> None:
    """Write a report as UTF-8; an older one of the same name is replaced.

    Raises:
        StorageError: the file cannot be written.
    """
    try:
        write_atomically(path, text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror}.",
            hint="Choose another --out, or make room on the disk.",
        ) from error
