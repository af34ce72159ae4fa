"""What an update will do on this computer: decided, and refused, before anything is copied."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgemed import models, reference_packs, reference_versions
from edgemed.errors import EdgemedError, ModelCorrupt, UpdateRefused, UsageError
from edgemed.languages import text as _
from edgemed.manifest import MANIFEST_NAME, ModelManifest
from edgemed.models import InstalledModel
from edgemed.pieces import Piece, check_plain_file
from edgemed.reference_manifest import REFERENCE_KINDS, ReferenceManifest, decode_reference_manifest
from edgemed.update_format import PackEntry, SignedPack
from edgemed.update_record import Record, incoming_folder, naming
from edgemed.update_stick import CONNECTED, COPY_AGAIN, Stick, plain_bytes

_MODEL_KINDS = ("model", "adapter")


@dataclass(frozen=True)
class PlannedPack:
    """One pack that this computer can use."""

    pack: SignedPack
    installed_name: str
    """NAME-vVERSION, or the name under which the very same pack is installed already."""
    is_installed: bool

    @property
    def entry(self) -> PackEntry:
        """Return what was signed of it."""
        return self.pack.entry

    @property
    def folder(self) -> Path:
        """Return where its files are brought together before it is installed."""
        return incoming_folder() / self.installed_name

    @property
    def manifest_sha256(self) -> str:
        """Return the SHA-256 of the pack's manifest, which names all its files by theirs."""
        return next(file.sha256 for file in self.entry.files if file.name == MANIFEST_NAME)

    @property
    def is_reference(self) -> bool:
        """Return whether it is a library or a rule set, not a model or an adapter."""
        return self.entry.kind in REFERENCE_KINDS


@dataclass(frozen=True)
class Plan:
    """What will be done with a stick."""

    packs: list[PlannedPack]
    """Models first."""
    refused: list[str]
    """One sentence for each pack that this computer cannot use."""


def make_plan(folder: Path, stick: Stick, record: Record) -> Plan:
    """Look at each pack of a stick; read its manifest, nothing more.

    Raises:
        UpdateRefused: a pack is older than what was here, or there is none that can be used here.
        ModelCorrupt: a manifest on the stick, or what is installed under a pack's name, is damaged.
        StorageError: the stick does not give a file.
    """
    installed = models.list_models().models
    packs: list[PlannedPack] = []
    refused: list[str] = []
    for pack in sorted(stick.packs, key=lambda pack: (pack.entry.kind != "model", pack.entry.name)):
        found: PlannedPack | str
        if reason := _other_kind(pack.entry, record):
            found = reason
        elif pack.entry.kind in REFERENCE_KINDS:
            found = _plan_reference(folder, pack, record)
        else:
            found = _plan_model(folder, pack, record, installed, packs)
        if isinstance(found, str):
            refused.append(found)
        else:
            packs.append(found)
    if not packs:
        raise UpdateRefused(
            refused[0] if refused else _("metadata/targets.json lists no pack."),
            hint=_("Ask headquarters for a stick for this computer."),
        )
    return Plan(packs, refused)


def _plan_model(
    folder: Path, pack: SignedPack, record: Record, installed: list[InstalledModel], coming: list[PlannedPack]
) -> PlannedPack | str:
    if reason := _cannot_use(pack.entry, installed, coming):
        return reason
    _check_not_older(pack.entry, record)
    return _planned(pack, _manifest(folder, pack), installed)


def _plan_reference(folder: Path, pack: SignedPack, record: Record) -> PlannedPack | str:
    _check_not_older(pack.entry, record)
    if reason := _cannot_use_reference(pack.entry):
        return reason
    manifest = _reference_manifest(folder, pack)
    try:
        is_installed = reference_packs.installed_already(manifest) is not None
    except UsageError:
        return _("Other files than those on the stick are installed as {name}.", name=_numbered(pack.entry))
    return PlannedPack(pack, manifest.installed_name, is_installed)


def _cannot_use(entry: PackEntry, installed: list[InstalledModel], coming: list[PlannedPack]) -> str:
    if entry.kind not in _MODEL_KINDS:
        return _(
            "The pack {name} is of the kind {kind}, which this version of edgemed cannot use.",
            name=entry.name,
            kind=entry.kind,
        )
    names = {file.name for file in entry.files}
    if MANIFEST_NAME not in names or not any(name.endswith(".gguf") for name in names):
        return _("The pack {name} holds no model.", name=entry.name)
    if entry.kind == "adapter":
        there = {file.sha256 for pack in coming for file in pack.entry.files}
        there |= {model.manifest.sha256 for model in installed if model.manifest.kind == "model"}
        if entry.base_sha256 not in there:
            return _(
                "The base model of the adapter {name} is not installed here (SHA-256 {digits}…).",
                name=entry.name,
                digits=(entry.base_sha256 or "?")[:12],
            )
    return ""


def _other_kind(entry: PackEntry, record: Record) -> str:
    """A name stays with its kind: else a new version of one would be the older version of another."""
    known = {pack.kind for pack in record.packs if pack.name == entry.name}
    known |= {
        pack.manifest.kind
        for pack in reference_packs.list_packs().packs
        if pack.manifest.name.lower() == entry.name.lower()
    }
    if not known or entry.kind in known:
        return ""
    return _(
        "The pack {name} is of the kind {kind}; on this computer that is the name of the kind {known}.",
        name=entry.name,
        kind=entry.kind,
        known=sorted(known)[0],
    )


def _cannot_use_reference(entry: PackEntry) -> str:
    if MANIFEST_NAME not in {file.name for file in entry.files}:
        return _("The pack {name} has no {file}.", name=entry.name, file=MANIFEST_NAME)
    newest = reference_versions.newest_version(entry.name)
    if newest > entry.version:
        # A kit brought it, so no update knows of it.
        return _(
            "{name} on the stick is version {old}; version {new} is installed here.",
            name=entry.name,
            old=entry.version,
            new=newest,
        )
    return ""


def _check_not_older(entry: PackEntry, record: Record) -> None:
    newest = record.newest(entry.name)
    if newest is not None and entry.version < newest.version:
        raise UpdateRefused(
            _(
                "{name} on the stick is version {old}; this computer has had version {new}.",
                name=entry.name,
                old=entry.version,
                new=newest.version,
            ),
            hint=_("Ask headquarters for the newest stick."),
        )


def _manifest(folder: Path, pack: SignedPack) -> ModelManifest:
    """Read a model's manifest on the stick, checked against what was signed."""
    data, entry = _manifest_bytes(folder, pack), pack.entry
    try:
        manifest = msgspec.json.decode(data, type=ModelManifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _damaged(pack) from error
    signed = {each.name: each.sha256 for each in entry.files}
    named = {each.name: each.sha256 for each in manifest.files}
    same = (manifest.kind, manifest.name, manifest.base_sha256) == (entry.kind, entry.name, entry.base_sha256)
    if not same or not named.items() <= signed.items():
        raise _unlike(pack)
    return manifest


def _reference_manifest(folder: Path, pack: SignedPack) -> ReferenceManifest:
    """Read a library's or rule set's manifest on the stick: it and the signed list name the same files."""
    data, entry = _manifest_bytes(folder, pack), pack.entry
    manifest = decode_reference_manifest(data, pack.pieces[MANIFEST_NAME][0].path)
    signed = {(each.name, each.size_bytes, each.sha256) for each in entry.files if each.name != MANIFEST_NAME}
    named = {(each.name, each.size_bytes, each.sha256) for each in manifest.files}
    same = (manifest.kind, manifest.name, manifest.version) == (entry.kind, entry.name, entry.version)
    if not same or named != signed:
        raise _unlike(pack)
    return manifest


def _manifest_bytes(folder: Path, pack: SignedPack) -> bytes:
    file = next(file for file in pack.entry.files if file.name == MANIFEST_NAME)
    data = b"".join(_small_piece(folder, piece) for piece in pack.pieces[MANIFEST_NAME])
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise _damaged(pack)
    return data


def _damaged(pack: SignedPack) -> ModelCorrupt:
    path = pack.pieces[MANIFEST_NAME][0].path
    return ModelCorrupt(
        _("{path} is damaged: its SHA-256 is not the signed one.", path=path), hint=_(COPY_AGAIN)
    )


def _unlike(pack: SignedPack) -> UpdateRefused:
    return UpdateRefused(
        _(
            "{path} and the signed list do not say the same of {name}.",
            path=pack.pieces[MANIFEST_NAME][0].path,
            name=pack.entry.name,
        ),
        hint=_("Tell headquarters."),
    )


def _small_piece(folder: Path, piece: Piece) -> bytes:
    with naming(piece.path, _(CONNECTED)):
        check_plain_file(piece.path, piece.size_bytes)
        return plain_bytes(folder, *piece.path.relative_to(folder).parts)


def _planned(pack: SignedPack, manifest: ModelManifest, installed: list[InstalledModel]) -> PlannedPack:
    """Find the very same pack among what is installed: under its own name from a kit, or from an update."""
    name = _numbered(pack.entry)
    by_name = {model.name: model for model in installed}
    for candidate in (name, manifest.name):
        model = by_name.get(candidate)
        if model is not None and msgspec.structs.replace(model.manifest, name=manifest.name) == manifest:
            _check_sound(model)
            return PlannedPack(pack, candidate, is_installed=True)
    if name in by_name:
        raise UpdateRefused(
            _("Something else is installed under the name {name}.", name=name),
            hint=_("Remove it with `edgemed models remove {name}`, then try again.", name=name),
        )
    return PlannedPack(pack, name, is_installed=False)


def _numbered(entry: PackEntry) -> str:
    return f"{entry.name}-v{entry.version}"


def _check_sound(model: InstalledModel) -> None:
    try:
        models.check_unchanged(model)
    except EdgemedError:
        models.verify_model(model)
