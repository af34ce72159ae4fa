"""What this computer remembers of updates: the trusted root, the record of what they did, and the lock.

DATA/updates/metadata/   root.json (trusted), and the metadata of the last update that was accepted
DATA/updates/record.json what updates installed, and what was in use before the last one
DATA/updates/incoming/   files that are not whole yet; an interrupted update goes on with them
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec

from edgemed.errors import StorageError, UsageError
from edgemed.languages import later
from edgemed.languages import text as _
from edgemed.operating_system import lock_file, write_atomically
from edgemed.pack_folders import storage_error
from edgemed.paths import updates_folder
from edgemed.update_format import METADATA_FOLDER
from edgemed.update_stick import ROOT_NAME, check_root, fingerprint

_MOST_ROOT_BYTES = 512_000
_START_ANEW = later(
    "Move the folder {folder} away and trust the kit's root.json again; what is installed stays installed."
)


class _Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Strict and immutable."""


class InUse(_Struct, frozen=True):
    """What the settings name; None leaves it to edgemed."""

    model: str | None
    adapter: str | None
    references: list[str] | None = None
    """Libraries and rule sets, NAME-vVERSION each, sorted; None in records of older versions: as they are."""


class RecordedPack(_Struct, frozen=True, kw_only=True):
    """One version of a pack that an update brought, or found installed."""

    name: str
    kind: str
    version: int
    sha256: str
    """Of its manifest."""
    installed_name: str


class Record(_Struct, frozen=True, kw_only=True):
    """What updates did on this computer."""

    schema_version: Literal[1] = 1
    update_version: int = 0
    """Of the last update that was accepted."""
    packs: list[RecordedPack] = []
    previous: InUse | None = None
    """What was in use before the last update; None after a rollback."""

    def newest(self, name: str) -> RecordedPack | None:
        """Return the newest version of a pack that was ever here, None if there was none."""
        versions = [pack for pack in self.packs if pack.name == name]
        return max(versions, key=lambda pack: pack.version, default=None)


def metadata_folder() -> Path:
    """Return where the trusted root and the accepted metadata lie."""
    return updates_folder() / METADATA_FOLDER


def incoming_folder() -> Path:
    """Return where files lie that are not installed yet."""
    return updates_folder() / "incoming"


def read_record() -> Record:
    """Return what updates did here so far.

    Raises:
        StorageError: the record cannot be read; nothing is guessed from it.
    """
    path = _record_file()
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record)
    except FileNotFoundError:
        return Record()
    except OSError as error:
        raise storage_error(error, path) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StorageError(
            _("The record of updates {path} is damaged.", path=path),
            hint=_(_START_ANEW, folder=updates_folder()),
        ) from error


def write_record(record: Record) -> None:
    """Replace the record in one step.

    Raises:
        StorageError: the disk does not take it.
    """
    with naming(_record_file()):
        write_atomically(_record_file(), msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")


@contextmanager
def locked() -> Iterator[None]:
    """Let one update work at a time; the system frees the lock when the process dies.

    Raises:
        FileInUse: another update is working.
    """
    folder = updates_folder()
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with lock_file(folder / "update.lock"):
        yield


@contextmanager
def naming(path: Path, hint: str = "") -> Iterator[None]:
    """Turn what the system says about a file into a named error."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, path, hint) from error


# Trust.


@dataclass(frozen=True)
class RootFile:
    """A root file that could be trusted."""

    data: bytes
    fingerprint: str
    expires: datetime
    trusted: bool
    """This very file is trusted already."""


def is_root_trusted() -> bool:
    """Return whether this computer trusts a headquarters."""
    with naming(metadata_folder()):
        return (metadata_folder() / ROOT_NAME).exists()


def examine_root(path: Path) -> RootFile:
    """Read a root file and compare it with the one this computer trusts.

    Raises:
        UsageError: this computer trusts another one; a root is never replaced by hand.
        UpdateRefused: the file is no root, or not signed by its own keys.
        StorageError: a disk does not give a file.
    """
    with naming(path), path.open("rb") as file:
        data = file.read(_MOST_ROOT_BYTES)
    expires = check_root(data, path)
    trusted = _trusted_bytes()
    if trusted not in (None, data):
        raise UsageError(
            _("This computer trusts another root already; {path} was not taken.", path=path),
            hint=_(
                "A new root comes with an update, signed by the old. If headquarters lost its keys: {anew}",
                anew=_(_START_ANEW, folder=updates_folder()),
            ),
        )
    return RootFile(data, fingerprint(data), expires, trusted=trusted is not None)


def trust_root(root: RootFile) -> None:
    """Trust a root file from `examine_root`: the first of this computer.

    Raises:
        UsageError: another one was trusted meanwhile.
        StorageError: the disk does not take it.
    """
    with locked():
        trusted = _trusted_bytes()
        if trusted == root.data:
            return
        if trusted is not None:
            raise UsageError(_("This computer trusts another root already."))
        path = metadata_folder() / ROOT_NAME
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, root.data)


def _trusted_bytes() -> bytes | None:
    path = metadata_folder() / ROOT_NAME
    with naming(path):
        return path.read_bytes() if path.exists() else None


def _record_file() -> Path:
    return updates_folder() / "record.json"
