"""What an update will do on this computer: decided, and refused, before anything is copied."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgemed import models
from edgemed.errors import EdgemedError, ModelCorrupt, UpdateRefused
from edgemed.languages import text as _
from edgemed.manifest import MANIFEST_NAME, ModelManifest
from edgemed.models import InstalledModel
from edgemed.pieces import Piece, check_plain_file
from edgemed.update_format import PackEntry, SignedPack
from edgemed.update_record import Record, incoming_folder, naming
from edgemed.update_stick import CONNECTED, COPY_AGAIN, Stick, plain_bytes

_KINDS = ("model", "adapter")


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
        reason = _cannot_use(pack.entry, installed, packs)
        if reason:
            refused.append(reason)
        else:
            _check_not_older(pack.entry, record)
            packs.append(_planned(pack, _manifest(folder, pack), installed))
    if not packs:
        raise UpdateRefused(
            refused[0] if refused else _("metadata/targets.json lists no pack."),
            hint=_("Ask headquarters for a stick for this computer."),
        )
    return Plan(packs, refused)


def _cannot_use(entry: PackEntry, installed: list[InstalledModel], coming: list[PlannedPack]) -> str:
    if entry.kind not in _KINDS:
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
    """Read the pack's manifest on the stick, checked against what was signed."""
    file = next(file for file in pack.entry.files if file.name == MANIFEST_NAME)
    pieces = pack.pieces[MANIFEST_NAME]
    path = pieces[0].path
    try:
        data = b"".join(_small_piece(folder, piece) for piece in pieces)
        manifest = msgspec.json.decode(data, type=ModelManifest)
    except (msgspec.DecodeError, UnicodeDecodeError):
        manifest = None
    if manifest is None or hashlib.sha256(data).hexdigest() != file.sha256:
        raise ModelCorrupt(
            _("{path} is damaged: its SHA-256 is not the signed one.", path=path), hint=_(COPY_AGAIN)
        )
    entry = pack.entry
    signed = {each.name: each.sha256 for each in entry.files}
    named = {each.name: each.sha256 for each in manifest.files}
    if (
        (manifest.kind, manifest.name, manifest.base_sha256) != (entry.kind, entry.name, entry.base_sha256)
    ) or not named.items() <= signed.items():
        raise UpdateRefused(
            _("{path} and the signed list do not say the same of {name}.", path=path, name=entry.name),
            hint=_("Tell headquarters."),
        )
    return manifest


def _small_piece(folder: Path, piece: Piece) -> bytes:
    with naming(piece.path, _(CONNECTED)):
        check_plain_file(piece.path, piece.size_bytes)
        return plain_bytes(folder, *piece.path.relative_to(folder).parts)


def _planned(pack: SignedPack, manifest: ModelManifest, installed: list[InstalledModel]) -> PlannedPack:
    """Find the very same pack among what is installed: under its own name from a kit, or from an update."""
    name = f"{manifest.name}-v{pack.entry.version}"
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


def _check_sound(model: InstalledModel) -> None:
    try:
        models.check_unchanged(model)
    except EdgemedError:
        models.verify_model(model)
