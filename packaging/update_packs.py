"""Packs on an update stick: models from `edgemed-convert pack`, libraries and rule sets with a pack.toml."""

import hashlib
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from reference_source import ReferenceSource, is_reference_source, read_reference_source

from edgemed.checksums import is_safe_path
from edgemed.errors import UsageError
from edgemed.manifest import MANIFEST_NAME, ModelManifest, read_manifest
from edgemed.models import examine_model
from edgemed.pieces import CutFile, cut
from edgemed.reference_manifest import ReferenceManifest
from edgemed.update_format import PACK_FIELD, TARGETS_FOLDER, PackEntry, PackFile

if TYPE_CHECKING:
    from tuf.api.metadata import TargetFile


class PublishedPack(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The newest version of one pack."""

    version: int
    content_sha256: str
    """Over the names and hashes of its files."""
    kind: str | None = None
    """None: published before kinds were recorded."""


@dataclass(frozen=True)
class Source:
    """A pack that shall be published, checked but for the bytes of models."""

    folder: Path
    manifest: ModelManifest | ReferenceManifest
    reference: ReferenceSource | None = None
    """Of a library or rule set: its folder has no manifest yet."""

    @property
    def paths(self) -> list[Path]:
        """Return the files that go onto the stick, sorted; without the manifest that is written there."""
        if self.reference is not None:
            return [self.folder / file.name for file in self.manifest.files]
        return sorted(self.folder.iterdir())


def checked_pack(path: Path) -> Source:
    """Look at a pack; every byte of a library or rule set is read, a model's when it is written.

    Raises:
        UsageError: it is none, or holds what no stick can.
        ModelError: it holds no usable model.
    """
    if not path.is_dir():
        raise UsageError(
            f"{path} is no pack.",
            hint="Name the folder that `edgemed-convert pack` made, or that of a library with its pack.toml.",
        )
    if is_reference_source(path):
        reference = read_reference_source(path)
        return Source(path, reference.manifest, reference)
    if not (path / MANIFEST_NAME).exists():
        raise UsageError(
            f"{path} is no pack: it has no {MANIFEST_NAME}, nor a pack.toml.",
            hint="`edgemed-convert pack` makes packs of models; packaging/README.md shows a pack.toml.",
        )
    examine_model(path)
    manifest = read_manifest(path / MANIFEST_NAME)
    if manifest.kind == "adapter" and manifest.base_sha256 is None:
        raise UsageError(f"The manifest of {path} does not say which base model the adapter belongs to.")
    for file in path.iterdir():
        if not stat.S_ISREG(file.lstat().st_mode):
            raise UsageError(f"{file} is a link, a folder or a special file; a pack holds plain files.")
        if not is_safe_path(f"{manifest.name}-v1/{file.name}"):
            raise UsageError(f"{file} has a name that a stick cannot hold.")
    return Source(path, manifest)


def check_published(source: Source, published: dict[str, PublishedPack]) -> None:
    """Refuse what clinics would not take: a name of another kind, a version that they know as something else.

    Raises:
        UsageError: names the pack, and what was published.
    """
    manifest = source.manifest
    for name, last in published.items():
        if name.lower() != manifest.name.lower():
            continue
        if name != manifest.name:
            raise UsageError(
                f"The name {manifest.name} differs from the published {name} only in case.",
                hint="Take the published spelling, or another name.",
            )
        if last.kind not in (None, manifest.kind):
            raise UsageError(
                f"The name {name} is that of a pack of the kind {last.kind}; {source.folder} is of the kind "
                f"{manifest.kind}.",
                hint="Give it another name.",
            )
    known = published.get(manifest.name)
    if known is None or source.reference is None or isinstance(manifest, ModelManifest):
        return
    is_same = _content_sha256(_hashes(source.reference)) == known.content_sha256
    if manifest.version < known.version or (manifest.version == known.version and not is_same):
        raise UsageError(
            f"{source.folder} says that it is version {manifest.version}, but version {known.version} of "
            f"{manifest.name} is published"
            + (" and is another." if manifest.version == known.version else " already."),
            hint="Give it a higher version in pack.toml, also to bring an old text back.",
        )


def _hashes(reference: ReferenceSource) -> dict[str, str]:
    named = {file.name: file.sha256 for file in reference.manifest.files}
    return {**named, MANIFEST_NAME: reference.manifest_sha256}


def write_pack(
    source: Source,
    stick: Path,
    published: dict[str, PublishedPack],
    targets: "dict[str, TargetFile]",
    piece_bytes: int,
) -> PackEntry:
    """Write the pieces of a pack's files; add them to the targets and its version to what was published."""
    from tuf.api.metadata import TargetFile

    manifest = source.manifest
    incoming = stick / TARGETS_FOLDER / f"{manifest.name}-new"
    incoming.mkdir(parents=True)
    cut_files = {file.name: cut(file, incoming / file.name, piece_bytes=piece_bytes) for file in source.paths}
    if source.reference is not None:
        cut_files[MANIFEST_NAME] = _cut_bytes(source.reference.manifest_bytes, incoming, piece_bytes)
    for file in manifest.files:
        if cut_files[file.name].sha256 != file.sha256:
            raise UsageError(
                f"{source.folder / file.name} is damaged: its SHA-256 is not the one in the manifest."
            )
    version = _pack_version(manifest, {name: made.sha256 for name, made in cut_files.items()}, published)
    folder = f"{manifest.name}-v{version}"
    incoming.rename(stick / TARGETS_FOLDER / folder)
    files = []
    for name, made in cut_files.items():
        names = [f"{folder}/{piece.path.name}" for piece in made.pieces]
        files.append(PackFile(name=name, size_bytes=made.size_bytes, sha256=made.sha256, pieces=names))
        for target, piece in zip(names, made.pieces, strict=True):
            targets[target] = TargetFile(piece.size_bytes, {"sha256": piece.sha256}, target)
    entry = PackEntry(
        kind=manifest.kind,
        name=manifest.name,
        version=version,
        base_sha256=manifest.base_sha256 if isinstance(manifest, ModelManifest) else None,
        files=files,
    )
    first = next(file for file in files if file.name == MANIFEST_NAME).pieces[0]
    targets[first].unrecognized_fields["custom"] = {PACK_FIELD: msgspec.to_builtins(entry)}
    return entry


def _cut_bytes(content: bytes, incoming: Path, piece_bytes: int) -> CutFile:
    """Write the manifest of a library or rule set."""
    path = incoming / f"{MANIFEST_NAME}.new"
    path.write_bytes(content)
    made = cut(path, incoming / MANIFEST_NAME, piece_bytes=piece_bytes)
    path.unlink()
    return made


def _pack_version(
    manifest: ModelManifest | ReferenceManifest, hashes: dict[str, str], published: dict[str, PublishedPack]
) -> int:
    """Return a library's own version; a model's is that of last time for the same files, else one more."""
    content = _content_sha256(hashes)
    last = published.get(manifest.name, PublishedPack(0, ""))
    version = last.version if last.content_sha256 == content else last.version + 1
    if isinstance(manifest, ReferenceManifest):
        version = manifest.version
    published[manifest.name] = PublishedPack(version, content, manifest.kind)
    return version


def _content_sha256(hashes: dict[str, str]) -> str:
    return hashlib.sha256(msgspec.json.encode(sorted(hashes.items()))).hexdigest()
