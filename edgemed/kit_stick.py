"""A kit on a stick: its signature, its list of files, and every byte of them.

Nothing here writes. `open_kit` believes only what the signed list SHA256SUMS vouches for; `check_whole` reads
every file; `copy_checked` is the only way by which bytes of the stick come into an installation.

Called by `edgemed kit` and by the installer, which carries a copy of this file: it imports the standard
library and what else of edgemed the installer carries, and its sentences are English.
"""

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edgemed import kit_list
from edgemed.checksums import SIGNATURE_NAME, SUMS_NAME, KitDamaged, parse_sums, sha256_of_file
from edgemed.errors import EdgemedError, StorageError, UsageError
from edgemed.kit_list import KIT_NAME, KitList
from edgemed.minisign import PublicKey, parse_public_key, read_public_key, verify_bytes

COPY_AGAIN = "Copy the kit again from where it came."
PULLED = "Check that the stick is connected, then start again."
PUBLIC_KEY = "install/edgemed.pub"
_CHUNK_BYTES = 4 * 2**20
_DEEPEST = 60
"""Folders within one another; no path of a kit has as many."""
_ONE_PYTHON = re.compile(r"-cp(\d+)-cp\1t?-")
_MOST_LIST_BYTES = 16 * 2**20
_SYSTEMS_OWN = re.compile(
    r"\._.*|\.DS_Store|\.Spotlight-V100|\.Trash.*|\.fseventsd|Thumbs\.db|desktop\.ini"
    r"|System Volume Information|\$RECYCLE\.BIN|lost\+found|found\.\d{3}",
    re.IGNORECASE,
)
"""What systems leave on sticks by themselves; nothing of it is ever read."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Kit:
    """A kit whose list is vouched for; its files are not read yet."""

    folder: Path
    key: PublicKey | None
    """That signed it; None: it is not signed, and was allowed all the same."""
    listed: KitList
    sums: dict[str, str]
    """Path → SHA-256, of everything but SHA256SUMS and its signature."""

    def path(self, name: str) -> Path:
        """Return where a file of the list lies."""
        return self.folder.joinpath(*name.split("/"))

    def wheels_for(self, python: str) -> list[str]:
        """Return the wheels folder's files, without the wheels that are for another Python than 3.N alone."""
        names = [name for name in self.sums if name.startswith("wheels/")]
        tags = {name: _ONE_PYTHON.search(name) for name in names}
        own = python.replace(".", "")
        return [name for name, tag in tags.items() if tag is None or tag[1] == own]


def find_key(folder: Path, given: str | None, trusted: Path | None) -> PublicKey | None:
    """Return the key that the kit must be signed with: the given one, the trusted one, or that of the stick.

    Args:
        given: a `.pub` file, or the key's line itself.
        trusted: the key of the kit that was installed before, if there is one.

    Raises:
        SignatureInvalid: it is no key.
    """
    if given is not None:
        path = Path(given)
        return read_public_key(path) if path.is_file() else parse_public_key(given, "The text after --key")
    if trusted is not None and trusted.is_file():
        return read_public_key(trusted)
    own = folder / PUBLIC_KEY
    return read_public_key(own) if own.exists() else None


def open_kit(folder: Path, key: PublicKey | None, *, allow_unsigned: bool) -> Kit:
    """Check the signature of the list, then read what it says of the kit.

    Raises:
        KitDamaged, SignatureInvalid: names the file.
        UsageError: the folder is no kit, or is not signed.
        StorageError: the stick does not give a file.
    """
    if not (folder / SUMS_NAME).exists():
        missing = f"{SUMS_NAME} is missing in {folder}."
        raise KitDamaged(missing, hint="Name the kit's own folder, or copy the kit again.")
    raw = _read_small(folder / SUMS_NAME)
    signer = _check_signature(folder, raw, key, allow_unsigned=allow_unsigned)
    sums = parse_sums(raw)
    if KIT_NAME not in sums:
        raise KitDamaged(f"{SUMS_NAME} does not list {KIT_NAME}.", hint=COPY_AGAIN)
    if not (folder / KIT_NAME).exists():
        raise KitDamaged(f"{KIT_NAME} is missing.", hint=COPY_AGAIN)
    listed = _read_small(folder / KIT_NAME)
    if hashlib.sha256(listed).hexdigest() != sums[KIT_NAME]:
        raise _damaged(KIT_NAME)
    return Kit(folder, signer, kit_list.parse(listed, sums), sums)


def _check_signature(
    folder: Path, raw: bytes, key: PublicKey | None, *, allow_unsigned: bool
) -> PublicKey | None:
    path = folder / SIGNATURE_NAME
    if not path.exists():
        if allow_unsigned:
            return None
        raise UsageError(
            f"{SIGNATURE_NAME} is missing: this kit is not signed, and nobody vouches for it.",
            hint="Ask for a signed kit. For trials only: --allow-unsigned",
        )
    if key is None:
        raise KitDamaged(
            f"{PUBLIC_KEY} is missing, so the signature cannot be checked.",
            hint=f"{COPY_AGAIN} Or give the key: --key FILE",
        )
    try:
        signature = _read_small(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise _damaged(SIGNATURE_NAME) from error
    verify_bytes(raw, signature, key, name=SUMS_NAME)
    return key


def check_whole(kit: Kit, progress: Progress) -> None:
    """Check that the stick holds the kit's files, no others, and that every byte is right.

    Raises:
        KitDamaged: names the first file that is missing, too many, of a wrong size or changed.
        StorageError: the stick does not give a file.
    """
    present = dict(_files_on(kit.folder))
    for name, size_bytes in {**kit.listed.sizes, KIT_NAME: None}.items():
        if name not in present:
            raise KitDamaged(f"{name} is missing.", hint=COPY_AGAIN)
        if size_bytes is not None and present[name] != size_bytes:
            raise KitDamaged(
                f"{name} is damaged: it has {present[name]:,} bytes instead of {size_bytes:,}.",
                hint=COPY_AGAIN,
            )
    for name in sorted(present):
        if name not in kit.sums and name not in (SUMS_NAME, SIGNATURE_NAME):
            raise KitDamaged(
                f"{name!r} does not belong to this kit: it was added, or two kits were mixed.",
                hint="Copy the kit again into an empty folder.",
            )
    total_bytes, done_bytes = sum(present[name] for name in kit.sums), 0

    def add(more_bytes: int) -> None:
        nonlocal done_bytes
        done_bytes += more_bytes
        progress(done_bytes, total_bytes)

    for name, sha256 in kit.sums.items():
        if _hash(kit.path(name), add) != sha256:
            raise _damaged(name)


def copy_checked(kit: Kit, name: str, target: Path) -> None:
    """Copy one file of the kit; what was written is what the list says, or there is an error.

    Raises:
        KitDamaged: the stick gave other bytes than a moment before.
        StorageError: the stick or the disk fails.
    """
    digest, source = hashlib.sha256(), kit.path(name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as written:
            for chunk in _chunks(source):
                digest.update(chunk)
                written.write(chunk)
    except OSError as error:
        raise disk_error(error, target) from error
    if digest.hexdigest() != kit.sums[name]:
        raise _damaged(name)


def disk_error(error: OSError, path: Path, hint: str = "") -> EdgemedError:
    """Return one sentence for what this computer's disk refused."""
    if error.errno is not None and os.strerror(error.errno) == os.strerror(_NO_SPACE):
        return StorageError(
            f"the disk is full: {path} could not be written.", hint="Delete files, then start again."
        )
    where = hint or "Check the disk, or set EDGEMED_HOME to a folder on another one."
    return StorageError(f"{path} cannot be written: {error.strerror or error}.", hint=where)


_NO_SPACE = 28
"""ENOSPC, on all systems."""


def _files_on(folder: Path, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Yield the path and size of each file in the kit's folder; refuse links and special files."""
    try:
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
        for entry in entries:
            name = f"{prefix}{entry.name}"
            status = entry.stat(follow_symlinks=False)
            if _SYSTEMS_OWN.fullmatch(entry.name):
                continue
            if name.count("/") > _DEEPEST:
                raise KitDamaged(f"{prefix[:80]!r} holds folders in folders without end.", hint=COPY_AGAIN)
            if stat.S_ISDIR(status.st_mode):
                yield from _files_on(folder / entry.name, f"{name}/")
            elif stat.S_ISREG(status.st_mode):
                yield name, status.st_size
            else:
                raise KitDamaged(f"{name!r} is a link or a special file; a kit has none.", hint=COPY_AGAIN)
    except OSError as error:
        raise _unreadable(folder if error.filename is None else Path(error.filename), error) from error


def _hash(path: Path, add: Callable[[int], None]) -> str:
    try:
        return sha256_of_file(path, add)
    except OSError as error:
        raise _unreadable(path, error) from error


def _chunks(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk
    except OSError as error:
        raise _unreadable(path, error) from error


def _read_small(path: Path) -> bytes:
    """Read a list whole, if it is a plain file of a sensible size."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise KitDamaged(f"{path.name!r} is a link or a special file; a kit has none.", hint=COPY_AGAIN)
        with path.open("rb") as file:
            raw = file.read(_MOST_LIST_BYTES + 1)
    except OSError as error:
        raise _unreadable(path, error) from error
    if len(raw) > _MOST_LIST_BYTES:
        raise _damaged(path.name)
    return raw


def _unreadable(path: Path, error: OSError) -> StorageError:
    return StorageError(f"{path} cannot be read: {error.strerror or error}.", hint=PULLED)


def _damaged(name: str) -> KitDamaged:
    return KitDamaged(f"{name} is damaged: its SHA-256 is not the listed one.", hint=COPY_AGAIN)
