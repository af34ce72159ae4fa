"""kit.json as the installer reads it: plain JSON, for msgspec is not there yet (`edgemed/kit_format.py`).

The installer carries a copy of this file: it imports the standard library and `edgemed.checksums`, no more,
and its sentences are English.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgemed.checksums import KitDamaged

KIT_NAME = "kit.json"
REFERENCE_KINDS = ("library", "rules")
_KINDS = ("model", "adapter", *REFERENCE_KINDS)
_SCHEMA_VERSION = 1
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+!-]{0,40}", re.ASCII)
_PACK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,80}", re.ASCII)
_PYTHON = re.compile(r"3\.[0-9]{1,2}", re.ASCII)


def plain(text: str, most_letters: int = 300) -> str:
    """Return text from a stick or a program as one line that a terminal can show."""
    return "".join(letter if letter.isprintable() else " " for letter in text).strip()[:most_letters]


@dataclass(frozen=True)
class Piece:
    """One file of a pack on the stick: the whole, or a part of it."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class PackFile:
    """One file of a pack as it will be installed."""

    name: str
    sha256: str
    pieces: list[Piece]
    """In order; one if it was not cut."""


@dataclass(frozen=True)
class Pack:
    """A model, adapter, library or rule set in the kit."""

    kind: str
    name: str
    version: int | None
    """Of a library or rule set."""
    folder: str
    size_bytes: int
    sha256: str
    files: list[PackFile]

    @property
    def installed_folder(self) -> str:
        """Return where it will lie in the data folder, if no other model has its name."""
        if self.kind in REFERENCE_KINDS:
            return f"reference_packs/{self.name}-v{self.version}"
        return f"models/{self.name}"

    @property
    def is_cut(self) -> bool:
        """Return whether its folder on the stick cannot be used as it is."""
        return any(
            len(file.pieces) != 1 or not file.pieces[0].path.endswith(file.name) for file in self.files
        )


@dataclass(frozen=True)
class KitList:
    """What kit.json says."""

    version: str
    platform: str
    pythons: list[str]
    """For which there are wheels, the oldest first."""
    carried_python: str | None
    installed_bytes: int
    packs: list[Pack]
    """Models first: an adapter needs its base."""
    libraries: list[str]
    sizes: dict[str, int]
    """Of each file on the stick but kit.json, SHA256SUMS and its signature."""


def parse(raw: bytes, sums: Mapping[str, str]) -> KitList:
    """Read kit.json and check that it names the files of SHA256SUMS, with the same hashes.

    Raises:
        KitDamaged: it is no JSON, says something unheard of, or the two lists differ.
    """
    try:
        data = json.loads(raw.decode("utf-8"))
        if data["schema_version"] != _SCHEMA_VERSION:
            raise KitDamaged(
                f"{KIT_NAME} is of a newer kind than this installer knows.",
                hint="Start the installer that lies on the same stick.",
            )
        listed = _parse(data)
        files = {piece.path: piece.sha256 for file in data["files"] for piece in _pieces(file)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise KitDamaged(
            f"{KIT_NAME} is not valid: {plain(str(error))}", hint="Copy the kit again from where it came."
        ) from error
    for name in sorted({*files, *sums} - {KIT_NAME}):
        if files.get(name) != sums.get(name):
            raise KitDamaged(
                f"{KIT_NAME} and SHA256SUMS do not say the same of {name}.",
                hint="Copy the kit again from where it came.",
            )
    return listed


def _parse(data: dict[str, Any]) -> KitList:
    files = [(_text(file["path"]), file) for file in data["files"]]
    packs = [_pack(pack, files) for pack in data["packs"]]
    pythons = [_matching(python, _PYTHON) for python in data["pythons"]]
    if not pythons:
        raise ValueError("it has wheels for no Python")
    return KitList(
        version=_matching(data["version"], _VERSION),
        platform=plain(_text(data["platform"]), 40),
        pythons=pythons,
        carried_python=data["carried_python"] and _matching(data["carried_python"], _VERSION),
        installed_bytes=_size(data["installed_bytes"]),
        packs=sorted(packs, key=lambda pack: pack.kind != "model"),
        libraries=[_text(path) for path in data["libraries"]],
        sizes={piece.path: piece.size_bytes for _, file in files for piece in _pieces(file)},
    )


def _pack(data: dict[str, Any], files: list[tuple[str, dict[str, Any]]]) -> Pack:
    folder = _text(data["folder"])
    inside = [
        PackFile(path.removeprefix(f"{folder}/"), _text(file["sha256"]), _pieces(file))
        for path, file in files
        if path.startswith(f"{folder}/")
    ]
    if not inside or any("/" in file.name for file in inside):
        raise ValueError(f"the pack {folder} is not a folder of files")
    kind, version = _text(data["kind"]), data.get("version")
    if kind not in _KINDS:
        raise ValueError(f"the pack {folder} is of the kind {kind}")
    return Pack(
        kind=kind,
        name=_matching(data["name"], _PACK_NAME),
        version=_size(version) if kind in REFERENCE_KINDS else None,
        folder=folder,
        size_bytes=_size(data["size_bytes"]),
        sha256=_text(data["sha256"]),
        files=inside,
    )


def _pieces(file: dict[str, Any]) -> list[Piece]:
    parts = file.get("pieces") or [file]
    return [Piece(_text(part["path"]), _size(part["size_bytes"]), _text(part["sha256"])) for part in parts]


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _size(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"{value!r} is no size")
    return value


def _matching(value: object, pattern: re.Pattern[str]) -> str:
    if not pattern.fullmatch(_text(value)):
        raise ValueError(f"{value!r} is not what it should be")
    return str(value)
