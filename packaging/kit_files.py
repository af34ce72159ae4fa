"""Write the files of a kit into one folder, each read back and hashed, and say what was written."""

import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgemed.checksums import is_safe_path, same_on_fat
from edgemed.errors import StorageError, UsageError
from edgemed.kit_format import KitFile, Piece

_CLUSTER_BYTES = 32 * 2**10
"""What a file takes at least on a large FAT32 stick."""


@dataclass(frozen=True)
class Entry:
    """One file that shall be in the kit."""

    path: str
    """Within the kit, with `/`."""
    content: bytes | Path
    """The bytes, or the file that holds them."""
    sha256: str | None = None
    """What the file must have, where that is known before."""

    @property
    def size_bytes(self) -> int:
        """Return the file's size."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


def check_entries(entries: Iterable[Entry]) -> list[Entry]:
    """Return the entries sorted by path, when every stick and system can hold them.

    Raises:
        UsageError: a name that cannot be, two that are one on FAT32, or a link.
    """
    known = sorted(entries, key=lambda entry: entry.path)
    for entry in known:
        if not is_safe_path(entry.path):
            raise UsageError(
                f"{entry.path!r} cannot be the name of a file on a stick.",
                hint="Take letters, digits, dots and dashes, and a shorter name.",
            )
        if isinstance(entry.content, Path) and not stat.S_ISREG(_status(entry.content).st_mode):
            raise UsageError(
                f"{entry.content} is no plain file.", hint="Kits hold no links: copy the file itself."
            )
    twin = same_on_fat(entry.path for entry in known)
    if twin is not None:
        raise UsageError(
            f"Two files of the kit would have the name {twin}.", hint="Give one of them another name."
        )
    return known


def check_space(folder: Path, size_bytes: int, files: int, hint: str) -> None:
    """Refuse what does not fit on the disk.

    Raises:
        StorageError: says how much is missing.
    """
    needed = size_bytes + files * _CLUSTER_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"The kit needs {needed / 1e6:,.0f} MB; the disk of {folder} has {free / 1e6:,.0f} MB free.",
            hint=hint,
        )


@contextmanager
def new_folder(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a folder to write into; it gets the name `target` when all is written, and else vanishes.

    Raises:
        UsageError: the target is there, and may not be replaced.
        StorageError: the disk does not take it.
    """
    if target.exists() and not overwrite:
        raise UsageError(
            f"{target} is there already.", hint="Name another folder, or replace it with --overwrite."
        )
    incoming, old = (target.with_name(f"{target.name}.{word}") for word in ("incoming", "old"))
    try:
        for leftover in (incoming, old):
            if leftover.exists():
                shutil.rmtree(leftover)
        incoming.mkdir(parents=True)
    except OSError as error:
        raise StorageError(f"{incoming} cannot be made: {error.strerror}.") from error
    try:
        yield incoming
        if target.exists():
            target.rename(old)
        incoming.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)


def write_entries(
    entries: list[Entry],
    folder: Path,
    created_seconds: int,
    add_bytes: Callable[[int], None],
    piece_bytes: int,
) -> list[KitFile]:
    """Write the files; what is larger than a piece is cut.

    Raises:
        UsageError: a file is not the one that it should be.
        StorageError: the disk is full or fails; names the file.
    """
    written = []
    for entry in entries:
        file = _write(entry, folder / entry.path, piece_bytes)
        if entry.sha256 not in (None, file.sha256):
            raise UsageError(
                f"{entry.content if isinstance(entry.content, Path) else entry.path} is damaged: "
                "its SHA-256 is not the one it should have.",
                hint="Fetch or build it again.",
            )
        written.append(file)
        add_bytes(file.size_bytes)
        for path in [piece.path for piece in file.pieces] or [file.path]:
            os.utime(folder / path, (created_seconds, created_seconds))
    return written


def _write(entry: Entry, target: Path, piece_bytes: int) -> KitFile:
    from edgemed.pieces import cut

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{target.parent} cannot be made: {error.strerror}.") from error
    if isinstance(entry.content, Path):
        made = cut(entry.content, target, piece_bytes=piece_bytes)
    else:
        source = target.with_name(f"{target.name}.bytes")
        _write_bytes(source, entry.content)
        made = cut(source, target, piece_bytes=piece_bytes)
        source.unlink()
    pieces = [
        Piece(
            path=entry.path + piece.path.name.removeprefix(target.name),
            size_bytes=piece.size_bytes,
            sha256=piece.sha256,
        )
        for piece in made.pieces
    ]
    return KitFile(
        path=entry.path,
        size_bytes=made.size_bytes,
        sha256=made.sha256,
        pieces=pieces if len(pieces) > 1 else [],
    )


def _write_bytes(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror}.", hint="Make room on the disk."
        ) from error


def _status(path: Path) -> os.stat_result:
    try:
        return path.lstat()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from error
