"""The manifest of a library or a rule set: texts that the app looks up, as read by machines.

Written at headquarters by the scripts that build kits and update sticks, from the folder's `pack.toml`; read
by all that installs, lists or uses such a pack.
"""

from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec

from edgemed.checksums import is_safe_path, same_on_fat
from edgemed.errors import ModelCorrupt
from edgemed.languages import text as _
from edgemed.manifest import MANIFEST_NAME, FileName, ModelFile

ReferenceKind = Literal["library", "rules"]
"""A library holds reference passages; a rule set says what may not be answered, or must be added."""
REFERENCE_KINDS: tuple[str, ...] = get_args(ReferenceKind)

Line = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]*$", max_length=300
    ),
]
"""One line that is shown to people, not empty and without anything that a terminal would obey."""
OWN_NAMES = (MANIFEST_NAME, "installed.json", "pack.toml")
"""What edgemed itself puts beside the files; no file of a pack has such a name."""


class ReferenceManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one library or rule set holds."""

    schema_version: Literal[1] = 1
    kind: ReferenceKind
    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,60}[A-Za-z0-9])?$")]
    version: Annotated[int, msgspec.Meta(ge=1, le=999_999)]
    """Rises with every change, wherever the pack travels."""
    title: Line
    language: Annotated[str, msgspec.Meta(pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]{2,8})*$")]
    """BCP 47, such as en or pt-BR."""
    license: Line
    source: Line
    """Who wrote it, or its address."""
    edition: Line
    """As its makers call it: a year, a date, a number."""
    files: Annotated[list[ModelFile], msgspec.Meta(min_length=1, max_length=999)]

    def __post_init__(self) -> None:
        # msgspec turns it into its own error, with the place.
        if problem := _problem(self.installed_name, [file.name for file in self.files]):
            raise ValueError(problem)

    @property
    def installed_name(self) -> str:
        """Return NAME-vVERSION: the name of its folder, and by which the settings choose it."""
        return f"{self.name}-v{self.version}"

    @property
    def size_bytes(self) -> int:
        """Return the size of all files together."""
        return sum(file.size_bytes for file in self.files)


def _problem(folder: str, names: list[FileName]) -> str:
    if twin := same_on_fat([*names, *OWN_NAMES]):
        return f"the name {twin} is taken already"
    unsafe = [name for name in names if not is_safe_path(f"{folder}/{name}")]
    return f"no stick can hold a file named {unsafe[0]}" if unsafe else ""


def read_reference_manifest(path: Path) -> ReferenceManifest:
    """Read and check a manifest.

    Raises:
        ModelCorrupt: the file cannot be read, is no JSON, or breaks the schema.
    """
    try:
        return decode_reference_manifest(path.read_bytes(), path)
    except OSError as error:
        raise ModelCorrupt(
            _("The manifest {path} cannot be read: {reason}", path=path, reason=error.strerror),
            hint=_("Copy the pack again from where it came."),
        ) from error


def decode_reference_manifest(raw: bytes, path: Path) -> ReferenceManifest:
    """Read a manifest from its bytes.

    Raises:
        ModelCorrupt: it is no JSON, or breaks the schema.
    """
    try:
        return msgspec.json.decode(raw, type=ReferenceManifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelCorrupt(
            _("The manifest {path} is not valid: {error}", path=path, error=error),
            hint=_("Copy the pack again from where it came."),
        ) from error


def encode_reference_manifest(manifest: ReferenceManifest) -> bytes:
    """Return the manifest as readable UTF-8 JSON; the same pack gives the same bytes."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
