"""What the signed list of an update stick says of its packs.

Written by `packaging/publish_update.py` into the custom part of TUF's targets; read by `edgemed update`.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from edgemed.checksums import is_safe_path, same_on_fat
from edgemed.errors import UpdateRefused
from edgemed.languages import text as _
from edgemed.manifest import FileName, Sha256
from edgemed.pieces import Piece

if TYPE_CHECKING:
    from tuf.api.metadata import TargetFile, Targets

METADATA_FOLDER = "metadata"
TARGETS_FOLDER = "targets"
PACK_FIELD = "pack"
"""In the custom part of one target of each pack: its `PackEntry`."""


class _Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Strict and immutable: an unknown field is an error, not a silent loss."""


class PackFile(_Struct, frozen=True, kw_only=True):
    """One file of a pack and the targets that make it."""

    name: FileName
    size_bytes: Annotated[int, msgspec.Meta(ge=0)]
    sha256: Sha256
    pieces: Annotated[list[str], msgspec.Meta(min_length=1, max_length=1000)]
    """Names of targets, in order; their sizes and hashes are signed beside them."""


class PackEntry(_Struct, frozen=True, kw_only=True):
    """One pack on a stick, as it stands in the signed list of targets."""

    schema_version: Literal[1] = 1
    kind: Annotated[str, msgspec.Meta(pattern="^[a-z][a-z_]{0,30}$")]
    """model, adapter, library or rules; a version of edgemed refuses kinds that it cannot use by name."""
    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,60}[A-Za-z0-9])?$")]
    version: Annotated[int, msgspec.Meta(ge=1)]
    """Rises with each content that headquarters publishes under this name."""
    base_sha256: Sha256 | None = None
    """Of an adapter: the first file of the base model it belongs to."""
    files: Annotated[list[PackFile], msgspec.Meta(min_length=1, max_length=1000)]

    @property
    def size_bytes(self) -> int:
        """Return the size of all files together."""
        return sum(file.size_bytes for file in self.files)


@dataclass(frozen=True)
class SignedPack:
    """One pack and where its pieces lie."""

    entry: PackEntry
    pieces: dict[str, list[Piece]]
    """File name → its pieces, in order."""


def signed_packs(folder: Path, targets: "Targets") -> list[SignedPack]:
    """Return the packs of the signed list.

    Raises:
        UpdateRefused: a name that no stick could hold, or words that this version does not know; names it.
    """
    for name in targets.targets:
        if not is_safe_path(name):
            raise UpdateRefused(
                _("The signed list has a file that cannot be on a stick: {name}.", name=_shown(name)),
                hint=_("Tell headquarters."),
            )
    if same := same_on_fat(targets.targets):
        raise UpdateRefused(
            _("The signed list has two names that differ only in case: {name}.", name=same),
            hint=_("Tell headquarters."),
        )
    packs = []
    for name, target in targets.targets.items():
        if target.custom is not None and PACK_FIELD in target.custom:
            packs.append(_pack(folder, target.custom[PACK_FIELD], targets.targets, name))
    names = [pack.entry.name.lower() for pack in packs]
    if len(set(names)) < len(names):
        raise not_understood("two packs of one name")
    return sorted(packs, key=lambda pack: pack.entry.name)


def _pack(folder: Path, custom: object, targets: "dict[str, TargetFile]", named_by: str) -> SignedPack:
    try:
        entry = msgspec.convert(custom, PackEntry)
    except msgspec.ValidationError as error:
        raise not_understood(named_by) from error
    names = [file.name.lower() for file in entry.files]
    if len(set(names)) < len(names):
        raise not_understood(named_by)
    pieces = {}
    for file in entry.files:
        found = [_piece(folder, name, targets) for name in file.pieces]
        if sum(piece.size_bytes for piece in found) != file.size_bytes:
            raise not_understood(named_by)
        pieces[file.name] = found
    return SignedPack(entry, pieces)


def _piece(folder: Path, name: str, targets: "dict[str, TargetFile]") -> Piece:
    target = targets.get(name)
    sha256 = target.hashes.get("sha256", "") if target is not None else ""
    if target is None or not re.fullmatch("[0-9a-f]{64}", sha256):
        raise not_understood(_shown(name))
    return Piece(folder / TARGETS_FOLDER / Path(*name.split("/")), target.length, sha256)


def not_understood(what: str) -> UpdateRefused:
    """Return the error for what a newer edgemed may have written."""
    return UpdateRefused(
        _("metadata/targets.json says of {what} what this version cannot understand.", what=what),
        hint=_("A newer edgemed may: install the newest kit."),
    )


def _shown(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:120]
