"""kit.json: what one kit holds, as read by machines.

Written by `packaging/build_kit.py`, read by the installed edgemed. The installer, which has only the standard
library, reads the same file as plain JSON.
"""

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from edgemed.checksums import KitDamaged, is_safe_path
from edgemed.languages import text as _
from edgemed.manifest import PlainText, Sha256

KIT_NAME = "kit.json"
KitPlatform = Literal["linux-x86_64", "linux-aarch64", "windows-x86_64"]
KIT_PLATFORMS: tuple[KitPlatform, ...] = ("linux-x86_64", "linux-aarch64", "windows-x86_64")

KitPath = str
"""Relative to the kit's folder, with `/`; checked with `is_safe_path`."""
PackName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,80}$")]
Size = Annotated[int, msgspec.Meta(ge=0)]


class _Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Strict and immutable; every field is written, so that the installer finds it."""


class Piece(_Struct, frozen=True, kw_only=True):
    """One part of a file that is too large for FAT32; it lies where the file would lie."""

    path: KitPath
    """That of the file, with .000, .001 … behind it."""
    size_bytes: Size
    sha256: Sha256

    def __post_init__(self) -> None:
        _check_path(self.path)


class KitFile(_Struct, frozen=True, kw_only=True):
    """One file of the kit."""

    path: KitPath
    size_bytes: Size
    """Of the whole file."""
    sha256: Sha256
    """Of the whole file."""
    pieces: list[Piece] = []
    """In order. When there are any, the file itself is not in the kit."""

    def __post_init__(self) -> None:
        _check_path(self.path)


class KitPack(_Struct, frozen=True, kw_only=True):
    """What the installer installs beside the program: a model, an adapter, a library or a rule set."""

    kind: Literal["model", "adapter", "library", "rules"]
    name: PackName
    version: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """Of a library or rule set; models have none."""
    folder: KitPath
    """Its files, pieces put together, are what `edgemed models install` takes."""
    size_bytes: Size
    sha256: Sha256
    """Of a model's first file, or a library's manifest: the name of the pack for machines."""
    base_sha256: Sha256 | None = None
    """Of an adapter: the first file of the base model it belongs to."""

    def __post_init__(self) -> None:
        _check_path(self.folder)


class KitManifest(_Struct, frozen=True, kw_only=True):
    """What one kit holds."""

    schema_version: Literal[1] = 1
    version: PlainText
    """Of edgemed."""
    platform: KitPlatform
    python_minimum: Annotated[str, msgspec.Meta(pattern=r"^3\.[0-9]{1,2}$")]
    pythons: Annotated[
        list[Annotated[str, msgspec.Meta(pattern=r"^3\.[0-9]{1,2}$")]], msgspec.Meta(min_length=1)
    ]
    """The Pythons for which every wheel is there, the oldest first."""
    carried_python: PlainText | None = None
    """Version of the Python in the folder `python`; None: the computer's own is used."""
    created: Annotated[str, msgspec.Meta(pattern=r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z$")]
    """The date of the source, not of the build: the same source gives the same kit."""
    signed: bool
    """False: SHA256SUMS has no signature, and nobody vouches for the kit."""
    portable_engine: bool = True
    """False: the engine was built for the processor of one computer, and others may not run it."""
    public_key: PlainText | None = None
    """The line of the minisign key that signed it. It proves nothing by itself: it lies on the same stick."""
    size_bytes: Size
    """All files of the kit, without kit.json, SHA256SUMS and its signature."""
    installed_bytes: Size
    """What the installed app takes, packs and libraries not counted; estimated from the wheels' contents."""
    packs: list[KitPack] = []
    libraries: list[KitPath] = []
    """Files that people read from the stick; they are not installed."""
    files: list[KitFile]
    """All files, sorted by path, but for kit.json, SHA256SUMS and its signature."""

    def __post_init__(self) -> None:
        for path in self.libraries:
            _check_path(path)


def _check_path(path: str) -> None:
    # msgspec turns it into its own error, with the place.
    if not is_safe_path(path):
        raise ValueError(f"{path!r} is no path of a kit")


def read_kit(path: Path) -> KitManifest:
    """Read and check a kit.json.

    Raises:
        KitDamaged: the file cannot be read, is no JSON, or breaks the schema.
    """
    try:
        return decode_kit(path.read_bytes(), path.name)
    except OSError as error:
        raise KitDamaged(
            _("{path} cannot be read: {reason}.", path=path, reason=error.strerror or error),
            hint=_("Copy the kit again from where it came."),
        ) from error


def decode_kit(raw: bytes, name: str = KIT_NAME) -> KitManifest:
    """Read a kit.json from its bytes.

    Raises:
        KitDamaged: it is no JSON, or breaks the schema.
    """
    try:
        return msgspec.json.decode(raw, type=KitManifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise KitDamaged(
            _("{name} is not valid: {error}", name=name, error=error),
            hint=_("Copy the kit again from where it came."),
        ) from error


def encode_kit(kit: KitManifest) -> bytes:
    """Return kit.json's bytes: readable UTF-8 JSON, the same for the same kit."""
    return msgspec.json.format(msgspec.json.encode(kit), indent=2) + b"\n"
