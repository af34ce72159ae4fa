"""Folders of installed packs that appear whole or not at all: copy, check, put in place, remove.

An installed pack is a folder that gets its name by one rename when every byte is checked and on the disk, and
loses it by one; beside its files lies `installed.json` (size and modification time of each, for the cheap
check). Called by `models.py` and `reference_packs.py`, which say what a pack is.
"""

import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edgemed.errors import EdgemedError, ModelCorrupt, StorageError
from edgemed.languages import text as _
from edgemed.manifest import ModelFile
from edgemed.operating_system import fsync_file, fsync_folder, lock_file, write_atomically, write_durably

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""

INSTALLED_NAME = "installed.json"

_LOCK_NAME = ".lock"
_INCOMING = ".incoming-"
_CHUNK_BYTES = 4 * 2**20
# Left for conversations and logs: a full disk would lose the next answer.
_SPARE_BYTES = 16 * 2**20


# Whole folders.


@contextmanager
def locked(parent: Path) -> Iterator[None]:
    """Let one program at a time install or remove here, without what a dead one left.

    Raises:
        FileInUse: another one is at work.
        StorageError: the disk refuses.
    """
    with naming(parent):
        parent.mkdir(parents=True, exist_ok=True)
    with naming(parent), lock_file(parent / _LOCK_NAME):
        for path in parent.glob(f"{_INCOMING}*"):
            _delete(path)
        yield


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give a folder to fill; it gets the target's name when all went well, and else vanishes.

    Raises:
        StorageError: the disk does not take it.
    """
    staged = target.with_name(f"{_INCOMING}{secrets.token_hex(8)}")
    try:
        with naming(staged):
            staged.mkdir()
        yield staged
        with naming(target):
            fsync_folder(staged)
            staged.rename(target)
            staged = target
            fsync_folder(target.parent)
    except BaseException:
        # Also for Ctrl+C: whatever ended the installation, nothing of it stays.
        shutil.rmtree(staged, ignore_errors=True)
        raise


def remove_folder(folder: Path, hint: str = "") -> None:
    """Delete an installed folder; one rename, so that an interrupted removal leaves no half a pack.

    Raises:
        StorageError: the disk, or another program that has a file open, refuses.
    """
    with naming(folder, hint):
        doomed = folder.with_name(f"{_INCOMING}{secrets.token_hex(8)}")
        folder.rename(doomed)
        _delete(doomed)
        fsync_folder(folder.parent)


def _delete(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink()
    else:
        shutil.rmtree(path)


def check_space(folder: Path, name: str, size_bytes: int) -> None:
    """Refuse what does not fit.

    Raises:
        StorageError: says how much is needed and how much is free.
    """
    with naming(folder):
        free = shutil.disk_usage(folder).free
    needed = size_bytes + _SPARE_BYTES
    if free < needed:
        raise StorageError(
            _(
                "{name} needs {megabytes}, and {folder} has {megabytes2} free.",
                name=name,
                megabytes=_megabytes(needed),
                folder=folder,
                megabytes2=_megabytes(free),
            ),
            hint=_("Delete files or remove a model, or let EDGEMED_HOME name a folder on a larger disk."),
        )


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.0f} MB"


# The cheap check.


def check_present(path: Path, file: ModelFile, hint: str) -> None:
    """Compare a file's size.

    Raises:
        ModelCorrupt: it is missing or of another size.
        StorageError: the disk does not say.
    """
    try:
        size_bytes = path.stat().st_size
    except FileNotFoundError as error:
        raise ModelCorrupt(_("{path} is missing.", path=path), hint=hint) from error
    except OSError as error:
        raise storage_error(error, path) from error
    if size_bytes != file.size_bytes:
        raise ModelCorrupt(
            _(
                "{path} is damaged: it has {size_bytes:,} bytes instead of {size_bytes2:,}.",
                path=path,
                size_bytes=size_bytes,
                size_bytes2=file.size_bytes,
            ),
            hint=hint,
        )


def is_as_installed(folder: Path, files: Iterable[ModelFile]) -> bool:
    """Return whether the files have the sizes and times of their installation."""
    try:
        installed = json.loads((folder / INSTALLED_NAME).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return bool(installed == _file_states(folder, files))


def write_states(folder: Path, files: Iterable[ModelFile], *, replace: bool = False) -> None:
    """Write down sizes and times: of a folder that has no name yet, or in place of what is there.

    Raises:
        StorageError: the disk refuses.
    """
    data = json.dumps(_file_states(folder, files), indent=2).encode() + b"\n"
    with naming(folder):
        (write_atomically if replace else write_durably)(folder / INSTALLED_NAME, data)


def _file_states(folder: Path, files: Iterable[ModelFile]) -> dict[str, list[int]]:
    with naming(folder):
        statuses = {file.name: (folder / file.name).stat() for file in files}
    return {name: [status.st_size, status.st_mtime_ns] for name, status in statuses.items()}


# Files.


class Counter:
    """Adds up bytes and tells the sum."""

    def __init__(self, progress: Progress, total_bytes: int) -> None:
        self._progress = progress
        self._total_bytes = total_bytes
        self._done_bytes = 0

    def add(self, more_bytes: int) -> None:
        """Tell of more bytes."""
        self._done_bytes += more_bytes
        self._progress(self._done_bytes, self._total_bytes)


def no_progress(_done_bytes: int, _total_bytes: int) -> None:
    """Tell nobody."""


def check_plain(path: Path, most_bytes: int, copy_again: str) -> None:
    """Refuse what is no plain file: a link could lead to any file of this machine.

    Raises:
        ModelCorrupt: it is missing, a link, or larger than it should be.
        StorageError: the disk does not say.
    """
    try:
        status = path.lstat()
    except FileNotFoundError as error:
        raise ModelCorrupt(_("{name} is missing in the pack.", name=path.name), hint=copy_again) from error
    except OSError as error:
        raise storage_error(error, path) from error
    if not stat.S_ISREG(status.st_mode):
        raise ModelCorrupt(
            _("{name} in the pack is a link or a special file, not a plain one.", name=path.name),
            hint=_("Copy the files themselves into the pack."),
        )
    if status.st_size > most_bytes:
        raise ModelCorrupt(_("{name} is larger than it should be.", name=path.name), hint=copy_again)


def copy_file(source: Path, target: Path, size_bytes: int, done: Counter) -> str:
    """Copy one file to the disk for good and return its SHA-256.

    Raises:
        ModelCorrupt: it has not this size.
        StorageError: a disk refuses.
    """
    digest = hashlib.sha256()
    copied = 0
    # What the source's disk says is a named error already, so every OSError here is the target's.
    with naming(target), target.open("xb") as target_file:
        for chunk in _chunks(source):
            copied += len(chunk)
            if copied > size_bytes:
                break
            target_file.write(chunk)
            digest.update(chunk)
            done.add(len(chunk))
        if copied != size_bytes:
            raise ModelCorrupt(
                _("{name} changed while it was copied.", name=source.name), hint=_("Install it again.")
            )
        target_file.flush()
        fsync_file(target_file.fileno())
    return digest.hexdigest()


def move_file(source: Path, target: Path, size_bytes: int, done: Counter) -> str:
    """Give a file that is on the disk for good its new place, and return its SHA-256.

    Raises:
        ModelCorrupt: it has not this size.
        StorageError: a disk refuses.
    """
    sha256 = hash_file(source, done)
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise storage_error(error, target) from error
        # The packs lie on another disk after all.
        return copy_file(source, target, size_bytes, Counter(no_progress, 0))
    if size_of(target) != size_bytes:
        raise ModelCorrupt(
            _("{name} changed while it was read.", name=source.name), hint=_("Install it again.")
        )
    return sha256


def hash_file(path: Path, done: Counter) -> str:
    """Return a file's SHA-256.

    Raises:
        StorageError: the disk does not give it.
    """
    digest = hashlib.sha256()
    for chunk in _chunks(path):
        digest.update(chunk)
        done.add(len(chunk))
    return digest.hexdigest()


def size_of(path: Path) -> int:
    """Return a file's size.

    Raises:
        StorageError: the disk does not say.
    """
    with naming(path):
        return path.stat().st_size


def _chunks(path: Path) -> Iterator[bytes]:
    with naming(path), path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


@contextmanager
def naming(path: Path, hint: str = "") -> Iterator[None]:
    """Turn what the system says about a file into a named error."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, path, hint) from error


def storage_error(error: OSError, path: Path, hint: str = "") -> EdgemedError:
    """Return the named error for what the system says about a file."""
    named = Path(os.fsdecode(error.filename)) if isinstance(error.filename, (str, bytes)) else path
    if error.errno == errno.ENOSPC:
        return StorageError(
            _("The disk is full: {named} cannot be written.", named=named),
            hint=_("Delete files, then try again."),
        )
    if error.errno == errno.EFBIG:
        return StorageError(
            _("The disk takes no file as large as {named}; FAT32 ends at 4 GiB.", named=named),
            hint=_("Use a split model, or let EDGEMED_HOME name a folder on another disk."),
        )
    return StorageError(
        _("{named} cannot be read or written: {reason}.", named=named, reason=error.strerror or error),
        hint=hint or "Check that the disk or stick is connected, not full, and that you may use the file.",
    )
