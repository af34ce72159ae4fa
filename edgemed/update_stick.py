"""Read an update stick and believe only what headquarters signed, through TUF (python-tuf's own workflow).

A stick has `metadata/` (1.root.json …, targets.json, snapshot.json, timestamp.json) and `targets/` (packs'
files, large ones in pieces). Nothing is written on the stick, and nothing of it is remembered until
`accept_metadata`. Called by `edgemed.updates` and by the script that publishes sticks.
"""

import hashlib
import stat
import sys
import tempfile
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgemed.errors import EdgemedError, UpdateRefused
from edgemed.languages import later
from edgemed.languages import text as _
from edgemed.operating_system import write_atomically
from edgemed.pack_folders import storage_error
from edgemed.update_format import METADATA_FOLDER, SignedPack, not_understood, signed_packs

if TYPE_CHECKING:
    from tuf.ngclient import Updater

ROOT_NAME = "root.json"
CREATED_FIELD = "x-edgemed-created"
"""In timestamp.json: when the update was signed; TUF itself knows only when it expires."""

_REMEMBERED = ("timestamp.json", "snapshot.json", "targets.json")
_MOST_METADATA_BYTES = 6 * 2**20
"""A little more than python-tuf takes of any file."""
_TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
_FETCHER = "tuf.ngclient.urllib3_fetcher"
COPY_AGAIN = later("Copy the stick again from headquarters; if it happens again, tell them.")
CONNECTED = later("Check that the stick is connected, then run the same command again.")


@dataclass(frozen=True)
class Stick:
    """What headquarters signed of this stick."""

    version: int
    """Of the list of targets; rises with each update."""
    created: datetime | None
    expires: datetime
    """The earliest of all its metadata."""
    packs: list[SignedPack]
    metadata: dict[str, bytes]
    """Name → bytes, all verified, for `accept_metadata`; the root first."""


def fingerprint(root: bytes) -> str:
    """Return the SHA-256 of a root file in groups of four, as people compare it."""
    digits = hashlib.sha256(root).hexdigest()
    return " ".join(digits[at : at + 4] for at in range(0, len(digits), 4))


def check_root(root: bytes, path: Path) -> datetime:
    """Check that a root file is one and signed by its own keys; return when it expires.

    Raises:
        UpdateRefused: it is not.
    """
    _import_updater()
    from tuf.api.exceptions import RepositoryError
    from tuf.api.metadata import Metadata, Root

    try:
        metadata = Metadata[Root].from_bytes(root)
        if metadata.signed.type != Root.type:
            raise RepositoryError("not a root")
        metadata.signed.verify_delegate(Root.type, metadata.signed_bytes, metadata.signatures)
    except RepositoryError as error:
        raise UpdateRefused(
            _("{path} is no root file of an edgemed headquarters, or it is damaged.", path=path),
            hint=_("Take root.json from the kit."),
        ) from error
    return metadata.signed.expires


def read_stick(folder: Path, accepted: Path) -> Stick:
    """Verify a stick's metadata against what this computer trusts and has accepted before.

    Args:
        folder: the stick, or a folder on it.
        accepted: the folder with the trusted root.json and the metadata of the last update. Not changed.

    Raises:
        UpdateRefused: not signed by the trusted keys, damaged, mixed, expired, or older than the last.
        StorageError: the stick or the disk fails; names the file.
    """
    # Not in the data folder: python-tuf makes a link there, which some file systems cannot hold.
    with (
        _naming(Path(tempfile.gettempdir())),
        tempfile.TemporaryDirectory(prefix="edgemed-update-", ignore_cleanup_errors=True) as work_name,
    ):
        work = Path(work_name)
        with _naming(accepted):
            root = (accepted / ROOT_NAME).read_bytes()
            for name in _REMEMBERED:
                if (accepted / name).exists():
                    (work / name).write_bytes((accepted / name).read_bytes())
        _refresh(folder, root, work)
        with _naming(work):
            metadata = {name: (work / name).read_bytes() for name in (ROOT_NAME, *_REMEMBERED)}
    return _stick(folder, metadata)


def accept_metadata(stick: Stick, accepted: Path) -> None:
    """Remember the stick's metadata: from now on everything older is refused.

    Raises:
        StorageError: the disk does not take it. What was remembered before still counts.
    """
    with _naming(accepted):
        for name, data in stick.metadata.items():
            write_atomically(accepted / name, data)


def plain_bytes(stick: Path, *parts: str) -> bytes:
    """Read a small file of the stick that is no link, nor in a folder that is one.

    Raises:
        FileNotFoundError: it is not there.
        UpdateRefused: it is no plain file, or too large for what it is.
        OSError: the stick does not give it.
    """
    check_no_links(stick, parts)
    with stick.joinpath(*parts).open("rb") as file:
        data = file.read(_MOST_METADATA_BYTES + 1)
    if len(data) > _MOST_METADATA_BYTES:
        raise UpdateRefused(_("{name} is too large.", name="/".join(parts)), hint=_(COPY_AGAIN))
    return data


def check_no_links(stick: Path, parts: Sequence[str]) -> None:
    """Refuse a file of the stick that is a link, or lies in a folder that is one: it could lead anywhere.

    Raises:
        UpdateRefused: names it.
        OSError: the stick does not say.
    """
    path = stick
    for number, part in enumerate(parts, start=1):
        path /= part
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            return  # Whoever opens it will say so.
        if not (stat.S_ISREG(mode) if number == len(parts) else stat.S_ISDIR(mode)):
            raise UpdateRefused(
                _("{name} on the stick is a link or a special file.", name="/".join(parts[:number])),
                hint=_(COPY_AGAIN),
            )


# The workflow of TUF.


def _import_updater() -> "type[Updater]":
    """Import python-tuf's client without the HTTP client that it would load for its default fetcher.

    A clinic install has no urllib3. We hand over a fetcher of our own, so an empty stand-in takes its place.
    """
    if "tuf.ngclient" not in sys.modules:
        stand_in = types.ModuleType(_FETCHER)
        stand_in.Urllib3Fetcher = type("Urllib3Fetcher", (), {})  # type: ignore[attr-defined]
        sys.modules[_FETCHER] = stand_in
    from tuf.ngclient import Updater

    return Updater


def _refresh(folder: Path, root: bytes, work: Path) -> None:
    """Run the client workflow; afterwards `work` holds the verified metadata."""
    updater_class = _import_updater()
    from tuf.api import exceptions

    fetcher = _folder_fetcher(folder)
    try:
        # Only the last part of each address is used.
        updater_class(str(work), "file:///", fetcher=fetcher, bootstrap=root).refresh()
    except exceptions.ExpiredMetadataError as error:
        raise _expired(folder, fetcher.asked, work) from error
    except (exceptions.RepositoryError, exceptions.DownloadError) as error:
        raise _refusal(error, fetcher, folder) from error
    except OSError as error:
        raise storage_error(error, work) from error


def _folder_fetcher(folder: Path) -> Any:
    """Return a fetcher of python-tuf that reads a folder and remembers which file was asked for last."""
    from tuf.api.exceptions import DownloadHTTPError
    from tuf.ngclient import FetcherInterface

    class FolderFetcher(FetcherInterface):
        asked = ROOT_NAME
        absent = ""
        """The next root, which the stick does not have."""

        def _fetch(self, url: str) -> Iterator[bytes]:
            self.asked = url.rpartition("/")[2]
            try:
                return iter([plain_bytes(folder, METADATA_FOLDER, self.asked)])
            except FileNotFoundError as error:
                # For the next root.json this means: the one before is the newest.
                self.absent = self.asked
                raise DownloadHTTPError("not there", 404) from error

    return FolderFetcher()


def _refusal(error: Exception, fetcher: Any, folder: Path) -> EdgemedError:
    """Say in one sentence which file was refused and why."""
    from tuf.api import exceptions

    file, cause = f"{METADATA_FOLDER}/{fetcher.asked}", error.__cause__
    if isinstance(cause, UpdateRefused):
        return cause
    if isinstance(error, exceptions.DownloadHTTPError):
        message, hint = _("{file} is missing in {folder}.", file=file, folder=folder), _(CONNECTED)
    elif isinstance(cause, OSError):
        return storage_error(cause, folder / file, _(CONNECTED))
    elif isinstance(error, exceptions.BadVersionNumberError):
        if file.endswith("timestamp.json"):
            message = _("The stick is older than the last update: {file} says so.", file=file)
            hint = _(
                "Ask headquarters for the newest stick. `edgemed update --rollback` goes back one update."
            )
        else:
            message, hint = _("{file} belongs to another update.", file=file), _(COPY_AGAIN)
    elif isinstance(error, exceptions.UnsignedMetadataError):
        message = _("{file} is not signed with the keys that this computer trusts.", file=file)
        if fetcher.absent:
            message = _(
                "{file} is not signed with the keys that this computer trusts, and there is no {root} with "
                "newer ones.",
                file=file,
                root=f"{METADATA_FOLDER}/{fetcher.absent}",
            )
        hint = _("The stick was changed, or another headquarters made it. Do not use it; tell yours.")
    elif isinstance(error, exceptions.LengthOrHashMismatchError):
        message = _("{file} is damaged or of another update: its SHA-256 is not the signed one.", file=file)
        hint = _(COPY_AGAIN)
    else:
        message, hint = _("{file} is damaged: it cannot be read as metadata.", file=file), _(COPY_AGAIN)
    return UpdateRefused(message, hint=hint)


def _expired(folder: Path, asked: str, work: Path) -> UpdateRefused:
    """Name the file and its date: the newest trusted root, or the verified file that was read last."""
    from tuf.api.exceptions import RepositoryError
    from tuf.api.metadata import Metadata, Root

    name, expires = f"{METADATA_FOLDER}/{asked}", ""
    try:
        root = Metadata[Root].from_file(str(work / ROOT_NAME)).signed
        if root.is_expired():
            name, expires = _("the trusted {name}", name=ROOT_NAME), root.expires.date().isoformat()
        else:
            data = plain_bytes(folder, METADATA_FOLDER, asked)
            expires = Metadata.from_bytes(data).signed.expires.date().isoformat()
    except (RepositoryError, UpdateRefused, OSError):
        expires = "?"
    return UpdateRefused(
        _("{name} expired on {expires}.", name=name, expires=expires),
        hint=_(
            "This computer's clock says {today}. If that is right, ask headquarters for a new stick; "
            "if it is wrong, set it and try again.",
            today=datetime.now(UTC).date().isoformat(),
        ),
    )


# What was signed.


def _stick(folder: Path, metadata: dict[str, bytes]) -> Stick:
    from tuf.api.metadata import Metadata, Targets, Timestamp

    signed = {name: Metadata.from_bytes(data).signed for name, data in metadata.items()}
    targets, timestamp = signed["targets.json"], signed["timestamp.json"]
    if not isinstance(targets, Targets) or not isinstance(timestamp, Timestamp):
        raise not_understood("the list of files")
    return Stick(
        version=targets.version,
        created=_created(timestamp.unrecognized_fields.get(CREATED_FIELD)),
        expires=min(each.expires for each in signed.values()),
        packs=signed_packs(folder, targets),
        metadata=metadata,
    )


def _created(value: object) -> datetime | None:
    try:
        return datetime.strptime(str(value), _TIME_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        return None


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise storage_error(error, path) from error
