"""The bytes and the text of a file that a stranger may have made: size, compression and encoding checked.

Every reader gets its text here, so that each refusal is said in one place and in the same words.
"""

import gzip
import hashlib
import lzma
import zlib
from pathlib import Path
from typing import BinaryIO, cast

from edgemed_training.errors import DataError

MAX_BYTES = 2 * 2**30
"""Larger files, and smaller ones that unpack to more, are refused: all text is held in memory."""
_PIECE_BYTES = 2**20
_GZIP, _XZ = b"\x1f\x8b", b"\xfd7zXZ\x00"
_TAR_MARK_AT = 257
_SAVE_AS = "Save it as UTF-8 text, for example as CSV or JSON Lines."


def read_text(path: Path) -> str:
    """Return a UTF-8 file's text without its byte order mark; .gz and .xz are unpacked.

    Raises:
        DataError: missing, empty, too large, an archive, a pickle, binary, or not UTF-8 (the line is named).
    """
    data = read_bytes(path)
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path} is UTF-16 text, not UTF-8.", hint=_SAVE_AS)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path} is not UTF-8: byte 0x{data[error.start]:02x} in line {line}.",
            hint="It may be in an old code page such as Latin-1 or Windows-1252. " + _SAVE_AS,
        ) from error
    if "\x00" in text:
        raise DataError(f"{path} is binary, not text.", hint=_SAVE_AS)
    if not text.strip():
        raise DataError(f"{path} is empty.", hint="Name a file with questions and answers.")
    return text


def read_bytes(path: Path) -> bytes:
    """Return a file's bytes; .gz and .xz are unpacked.

    Raises:
        DataError: missing, empty, unreadable, too large, damaged, an archive or a pickle.
    """
    try:
        with _opened(path, head(path, 6)) as file:
            data = _read_all(file, path)
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path} is damaged: its compressed data cannot be unpacked ({error}).",
            hint="Copy the file again.",
        ) from error
    except OSError as error:
        raise _unreadable(path, error) from error
    _refuse_containers(path, data)
    if not data:
        raise DataError(f"{path} is empty.", hint="Name a file with questions and answers.")
    return data


def head(path: Path, size: int) -> bytes:
    """Return the first bytes of a file as they are on the disk.

    Raises:
        DataError: there is no such file, or it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise _unreadable(path, error) from error


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes on the disk."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def sha256_of_files(folder: Path, files: list[Path]) -> str:
    """Return one SHA-256 over the names and the hashes of files in a folder, in the order of their names."""
    names = sorted((file.relative_to(folder).as_posix(), file) for file in files)
    lines = "".join(f"{sha256_of_file(file)}  {name}\n" for name, file in names)
    return hashlib.sha256(lines.encode()).hexdigest()


def _opened(path: Path, first: bytes) -> BinaryIO:
    if first.startswith(_GZIP):
        return cast(BinaryIO, gzip.open(path, "rb"))
    return cast(BinaryIO, lzma.open(path, "rb")) if first == _XZ else path.open("rb")


def _read_all(file: BinaryIO, path: Path) -> bytes:
    pieces, size = [], 0
    while piece := file.read(_PIECE_BYTES):
        size += len(piece)
        if size > MAX_BYTES:
            raise DataError(
                f"{path} holds more than {MAX_BYTES // 2**30} GiB of text.",
                hint="Divide it, and name all parts; or keep it as Parquet.",
            )
        pieces.append(piece)
    return b"".join(pieces)


def _refuse_containers(path: Path, data: bytes) -> None:
    if data[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        raise DataError(
            f"{path} is a ZIP archive or an Excel workbook.",
            hint="Unpack the archive and name the file in it; save a workbook as CSV in UTF-8.",
        )
    if data[:1] == b"\x80" and data[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise DataError(
            f"{path} is a Python pickle. Opening one can run any program, so edgemed never does.",
            hint="Ask its maker for CSV, JSON Lines or Parquet.",
        )
    if data[_TAR_MARK_AT : _TAR_MARK_AT + 5] == b"ustar":
        raise DataError(f"{path} is a tar archive.", hint="Unpack it, and name the file or folder in it.")


def _unreadable(path: Path, error: OSError) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(
            f"There is no file or folder {path}.",
            hint="Name a local file or folder: this program never downloads.",
        )
    return DataError(f"{path} cannot be read: {error.strerror or error}.", hint="Look at its permissions.")
