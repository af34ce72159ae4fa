"""New files and folders that appear under their name whole or not at all; what a disk answers that will not.

Everything the tool writes goes through here: it is written beside its target as `.NAME.partial`, brought to
the disk, and renamed. A kill at any moment leaves at most the `.partial`, which the next run removes.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from edgemed.errors import FileInUse, StorageError, UsageError
from edgemed.operating_system import fsync_file, fsync_folder, lock_file, replace_file

_FULL = (errno.ENOSPC, errno.EDQUOT) if hasattr(errno, "EDQUOT") else (errno.ENOSPC,)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


class Progress(Protocol):
    """Called while work goes on, with what is done of the whole."""

    def __call__(self, stage: str, done: int, total: int, unit: str = "bytes") -> None:
        """Show that `done` of `total` units of the stage are finished."""


def no_progress(stage: str, done: int, total: int, unit: str = "bytes") -> None:
    """Show nothing."""


@contextlib.contextmanager
def new_file(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a name to write to; the file gets its real name when the block ends without an error.

    Missing folders are created.

    Raises:
        UsageError: the target exists and `replace` is false, or it is a folder, or another run writes it.
        StorageError: the disk is full, read-only, or fails; also for any OSError of the block.
    """
    written = _partial(path)
    with _storage_errors(path):
        _refuse_existing_file(path, replace=replace)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _only_writer(path):
            try:
                written.unlink(missing_ok=True)
                yield written
                _fsync_path(written)
                _refuse_existing_file(path, replace=replace)
                replace_file(written, path)
            finally:
                _remove_quietly(written)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to write into; it gets its real name when the block ends without an error.

    Missing parent folders are created; an empty folder in the target's place is taken over.

    Raises:
        UsageError: the target exists and is not an empty folder, or another run writes it.
        StorageError: the disk is full, read-only, or fails; also for any OSError of the block.
    """
    written = _partial(path)
    with _storage_errors(path):
        _refuse_existing_folder(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _only_writer(path):
            try:
                _remove_quietly(written)
                written.mkdir()
                yield written
                for folder, _folders, names in os.walk(written, topdown=False):
                    for name in names:
                        _fsync_path(Path(folder, name))
                    fsync_folder(Path(folder))
                _refuse_existing_folder(path)
                if path.is_dir():
                    # Windows renames onto nothing else than a free name.
                    path.rmdir()
                written.rename(path)
                fsync_folder(path.parent)
            finally:
                _remove_quietly(written)


def check_free_space(folder: Path, needed_bytes: int) -> None:
    """Refuse to start what the disk cannot hold.

    Args:
        folder: where the files will be; it need not exist yet.
        needed_bytes: all of them together.

    Raises:
        StorageError: less than that is free.
    """
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    with _storage_errors(folder):
        free_bytes = shutil.disk_usage(existing).free
    if free_bytes < needed_bytes:
        raise StorageError(
            f"The disk of {folder} has {readable_bytes(free_bytes)} free, "
            f"but {readable_bytes(needed_bytes)} are needed.",
            hint="Free some space, or name a folder on another disk.",
        )


def readable_bytes(count: int) -> str:
    """Return a number of bytes as people read it: powers of 1000, as disks are sold."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def storage_error(path: Path, error: OSError) -> StorageError:
    """Return the one sentence for what the disk answered while `path` was written."""
    if error.errno in _FULL:
        return StorageError(
            f"The disk is full: {path} could not be written.",
            hint="Free some space, or name a folder on another disk.",
        )
    if error.errno == errno.EFBIG:
        return StorageError(
            f"{path} would be larger than this disk or this account allows.",
            hint="Name a folder on a disk that takes large files (FAT32 ends at 4 GB), or raise the limit.",
        )
    if error.errno in _FORBIDDEN:
        return StorageError(
            f"{path} may not be written: {error.strerror}.",
            hint="Name a folder that you may write to.",
        )
    return StorageError(
        f"{path} could not be written: {error.strerror or error}.",
        hint="Check the disk and the path, then start again.",
    )


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


@contextlib.contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise storage_error(path, error) from error


@contextlib.contextmanager
def _only_writer(path: Path) -> Iterator[None]:
    """Keep a second run from writing the same partial file."""
    lock_path = path.with_name(f".{path.name}.lock")
    with contextlib.ExitStack() as stack:
        # Removed when it is free again; what has been unlocked can be locked by nobody who waited for it.
        stack.callback(_remove_quietly, lock_path)
        try:
            stack.enter_context(lock_file(lock_path))
        except FileInUse as error:
            stack.pop_all()
            raise UsageError(
                f"{path} is being written by another run.", hint="Wait until it has finished."
            ) from error
        except StorageError:
            # A disk without locks; a folder that cannot be written says so in the next step.
            pass
        yield


def _refuse_existing_file(path: Path, *, replace: bool) -> None:
    if path.is_dir():
        raise UsageError(f"{path} is a folder, not a file.", hint="Give the output file another name.")
    if path.exists() and not replace:
        raise UsageError(
            f"{path} exists.", hint="Give the output another name; --overwrite replaces the old file."
        )


def _refuse_existing_folder(path: Path) -> None:
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists():
        raise UsageError(f"{path} exists.", hint="Give the output another name, or remove the old folder.")


def _fsync_path(path: Path) -> None:
    # Windows flushes only what is open for writing.
    descriptor = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        fsync_file(descriptor)
    finally:
        os.close(descriptor)


def _remove_quietly(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
