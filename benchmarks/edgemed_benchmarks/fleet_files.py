"""Which files of a fleet's folder can be read: packs from many machines, some of them cut, some no packs."""

import gzip
import zlib
from collections.abc import Sequence
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

import msgspec

from edgemed_benchmarks.errors import RecordError
from edgemed_benchmarks.pack_format import LARGEST_UNPACKED_BYTES, SUFFIX, is_pack

SUFFIXES = (SUFFIX, ".jsonl")
"""Packs, and record files that nobody packed."""
_PIECE_BYTES = 256 * 1024


class BadFile(NamedTuple):
    """A file that is left out, whole or in part, and why."""

    name: str
    reason: str


class _Head(msgspec.Struct):
    schema: str = ""


def fleet_files(folder: Path) -> list[Path]:
    """Return the packs and record files below a folder, in the order of their names.

    Raises:
        RecordError: there is no such folder, or nothing in it.
    """
    if not folder.is_dir():
        raise RecordError(f"{folder} is no folder.", hint="Give the folder that holds the packs.")
    found = sorted(path for path in folder.rglob("*") if path.name.endswith(SUFFIXES) and path.is_file())
    if not found:
        raise RecordError(
            f"{folder} holds no packs.",
            hint=f"Packs end in {SUFFIX}; make them with edgemed-bench pack.",
        )
    return found


def split_readable(paths: Sequence[Path], schemas: Sequence[str]) -> tuple[list[Path], list[BadFile]]:
    """Return the whole files of a known schema, and the others with the reason; each is read in pieces."""
    good, bad = [], []
    for path in paths:
        reason = _fault(path, schemas)
        if reason:
            bad.append(BadFile(path.name, reason))
        else:
            good.append(path)
    return good, bad


def _fault(path: Path, schemas: Sequence[str]) -> str:
    try:
        with _opened(path) as file:
            piece = file.read(_PIECE_BYTES)
            fault = _head_fault(piece, schemas)
            taken = len(piece)
            while piece and not fault:
                last = piece
                piece = file.read(_PIECE_BYTES)
                taken += len(piece)
                if taken > LARGEST_UNPACKED_BYTES:
                    return "is greater than any pack"
            # A power cut leaves a record file with half a last line; a pack is written in one piece.
            if not fault and is_pack(path) and not last.endswith(b"\n"):
                return "was cut in the middle of a line"
            return fault
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return "is damaged or was cut"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _head_fault(piece: bytes, schemas: Sequence[str]) -> str:
    line, newline, _ = piece.partition(b"\n")
    if not piece:
        return "is empty"
    try:
        head = msgspec.json.decode(line, type=_Head) if newline else _Head()
    except (msgspec.DecodeError, UnicodeDecodeError):
        head = _Head()
    if not head.schema:
        return "is no benchmark file"
    if head.schema not in schemas:
        return f"is of schema {head.schema[:40]!r}, which this edgemed does not read"
    return ""


def _opened(path: Path) -> gzip.GzipFile | BufferedReader:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")
