"""Cut a file into pieces that a FAT32 stick can hold, and join them again.

Each piece has a SHA-256 of its own, so that a copy which was interrupted goes on where it stopped. Used by
`edgemed update` and by the scripts that build kits and updates.
"""

import hashlib
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edgemed.errors import ModelCorrupt, StorageError, UsageError
from edgemed.languages import later
from edgemed.languages import text as _
from edgemed.operating_system import fsync_file, replace_file
from edgemed.pack_folders import Progress, storage_error

LARGEST_PIECE_BYTES = 3_900_000_000
"""FAT32 ends at 4 GiB less one byte."""

_MOST_PIECES = 1000
_CHUNK_BYTES = 4 * 2**20
_PULLED = later(
    "Check that the stick is connected, then run the same command again: what was copied is kept."
)
_COPY_AGAIN = later("Copy this file, or all of the stick, again from headquarters.")


@dataclass(frozen=True)
class Piece:
    """One part of a file, or a whole one that is small enough."""

    path: Path
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class CutFile:
    """A file and what was made of it."""

    size_bytes: int
    sha256: str
    pieces: list[Piece]
    """In order."""


def piece_paths(path: Path, size_bytes: int, piece_bytes: int = LARGEST_PIECE_BYTES) -> list[Path]:
    """Return where the pieces of a file will lie: NAME.000, NAME.001 …, or NAME alone if one is enough.

    Raises:
        UsageError: there would be more than a thousand.
    """
    count = max(1, -(-size_bytes // piece_bytes))
    if count == 1:
        return [path]
    if count > _MOST_PIECES:
        raise UsageError(
            _("{name} would make {count:,} pieces.", name=path.name, count=count),
            hint=_("Take larger pieces."),
        )
    return [path.with_name(f"{path.name}.{number:03}") for number in range(count)]


def cut(
    source: Path, target: Path, *, piece_bytes: int = LARGEST_PIECE_BYTES, progress: Progress | None = None
) -> CutFile:
    """Write the pieces of a file, each read back from the disk, and return their sizes and hashes.

    Args:
        target: the file's place on the stick; the pieces are named after it and replace what is there.

    Raises:
        UsageError: too many pieces.
        StorageError: a disk that is full or fails, or the file changed meanwhile.
    """
    with _naming(source):
        size_bytes = source.stat().st_size
    whole = hashlib.sha256()
    pieces: list[Piece] = []
    chunks = _chunks(source)
    rest, done = b"", 0
    for path in piece_paths(target, size_bytes, piece_bytes):
        wanted = min(piece_bytes, size_bytes - done)
        digest, written = hashlib.sha256(), 0
        with _naming(path), path.open("wb") as file:
            while written < wanted:
                data = rest or next(chunks, b"")
                if not data:
                    break
                data, rest = data[: wanted - written], data[wanted - written :]
                file.write(data)
                digest.update(data)
                whole.update(data)
                written += len(data)
                if progress:
                    progress(done + written, size_bytes)
            file.flush()
            fsync_file(file.fileno())
        pieces.append(Piece(path, written, digest.hexdigest()))
        done += written
        if _hash(path) != pieces[-1].sha256:
            raise _gave_back_other_bytes(path)
    if done != size_bytes or rest or next(chunks, b""):
        raise StorageError(
            _("{name} changed while it was cut.", name=source.name), hint=_("Start again from the beginning.")
        )
    return CutFile(size_bytes, whole.hexdigest(), pieces)


def join(pieces: Sequence[Piece], target: Path, *, sha256: str, progress: Progress | None = None) -> None:
    """Make one file of its pieces; it gets its name by one rename when every byte is checked and on the disk.

    Bytes that an interrupted call left in `target.part` are kept, piece by piece, if they are right. Each
    piece is read back after it was written and flushed; what a disk's own cache hides, that cannot show.

    Args:
        pieces: in order.
        sha256: of the whole file.

    Raises:
        ModelCorrupt: names the piece that is missing, of a wrong size or damaged.
        StorageError: the stick or the disk does not give or take bytes; names the file.
    """
    total_bytes = sum(piece.size_bytes for piece in pieces)
    report = progress or _no_progress
    with _naming(target):
        finished = target.is_file() and target.stat().st_size == total_bytes
    if finished and _hash(target) == sha256:
        report(total_bytes, total_bytes)
        return
    part = target.with_name(f"{target.name}.part")
    with _naming(part):
        part.parent.mkdir(parents=True, exist_ok=True)
        part.open("ab").close()
        with part.open("r+b") as file:
            _fill(file, part, pieces, sha256, report, total_bytes)
        replace_file(part, target)


def _fill(
    file: BinaryIO, part: Path, pieces: Sequence[Piece], sha256: str, report: Progress, total_bytes: int
) -> None:
    """Bring each piece to its place in the partial file, and check the whole."""
    whole = hashlib.sha256()
    start = 0
    for piece in pieces:
        with_piece = whole.copy()
        if _hash_region(file, start, piece.size_bytes, with_piece) != piece.sha256:
            with_piece = whole.copy()
            _copy(piece, file, start, _from(start, report, total_bytes))
            if _hash_region(file, start, piece.size_bytes, with_piece) != piece.sha256:
                raise _gave_back_other_bytes(part)
        whole = with_piece
        start += piece.size_bytes
        report(start, total_bytes)
    file.truncate(start)
    file.flush()
    fsync_file(file.fileno())
    if whole.hexdigest() != sha256:
        raise ModelCorrupt(
            _("The pieces of {name} are whole, but do not make the file that they should.", name=part.stem),
            hint=_(_COPY_AGAIN),
        )


def _copy(piece: Piece, file: BinaryIO, start: int, report: Callable[[int], None]) -> None:
    """Write one piece into its place, checked on the way and on the disk when this returns."""
    check_plain_file(piece.path, piece.size_bytes)
    digest, copied = hashlib.sha256(), 0
    file.seek(start)
    for data in _chunks(piece.path):
        copied += len(data)
        if copied > piece.size_bytes:
            break
        digest.update(data)
        file.write(data)
        report(copied)
    if copied != piece.size_bytes or digest.hexdigest() != piece.sha256:
        raise _damaged(piece.path)
    file.flush()
    fsync_file(file.fileno())


def check_plain_file(path: Path, size_bytes: int) -> None:
    """Refuse what is no plain file of this size; a link could lead anywhere.

    Raises:
        ModelCorrupt: it is missing, a link, or of another size.
        StorageError: the stick does not say.
    """
    try:
        status = path.lstat()
    except FileNotFoundError as error:
        raise ModelCorrupt(
            _("{path} is missing.", path=path),
            hint=_("Check that the stick is connected. If it is, copy the stick again from headquarters."),
        ) from error
    except OSError as error:
        raise storage_error(error, path, _(_PULLED)) from error
    if not stat.S_ISREG(status.st_mode):
        raise ModelCorrupt(
            _("{path} is a link or a special file, not a plain one.", path=path), hint=_(_COPY_AGAIN)
        )
    if status.st_size != size_bytes:
        raise ModelCorrupt(
            _(
                "{path} is damaged: it has {found:,} bytes instead of {wanted:,}.",
                path=path,
                found=status.st_size,
                wanted=size_bytes,
            ),
            hint=_(_COPY_AGAIN),
        )


def _damaged(path: Path) -> ModelCorrupt:
    return ModelCorrupt(
        _("{path} is damaged: its SHA-256 is not the signed one.", path=path), hint=_(_COPY_AGAIN)
    )


def _gave_back_other_bytes(path: Path) -> StorageError:
    return StorageError(
        _("The disk gave back other bytes than were written to {path}.", path=path),
        hint=_("This disk or stick is failing. Use another one."),
    )


def _hash_region(file: BinaryIO, start: int, size_bytes: int, whole: "hashlib._Hash") -> str:
    """Return the SHA-256 of a part of the file; its bytes go into `whole` too."""
    digest = hashlib.sha256()
    file.seek(start)
    while size_bytes and (data := file.read(min(size_bytes, _CHUNK_BYTES))):
        digest.update(data)
        whole.update(data)
        size_bytes -= len(data)
    return digest.hexdigest()


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    for data in _chunks(path):
        digest.update(data)
    return digest.hexdigest()


def _chunks(path: Path) -> Iterator[bytes]:
    with _naming(path, _(_PULLED)), path.open("rb") as file:
        while data := file.read(_CHUNK_BYTES):
            yield data


@contextmanager
def _naming(path: Path, hint: str = "") -> Iterator[None]:
    """Turn what the system says about a file into a named error."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, path, hint) from error


def _from(start: int, report: Progress, total_bytes: int) -> Callable[[int], None]:
    return lambda done_bytes: report(start + done_bytes, total_bytes)


def _no_progress(_done_bytes: int, _total_bytes: int) -> None:
    pass
