"""Installed libraries and rule sets: install, list, choose, verify, remove.

Each version is a folder `reference_packs/NAME-vVERSION` in the data folder: its files, `manifest.json` (see
`reference_manifest.py`) and `installed.json`. A folder gets its name by one rename when every byte is checked
and on the disk. The line `references` of settings.toml names the versions in use; it is replaced in one step,
together with the model's. Without that line, the newest version of each is in use.

The parts that search a library or apply rules ask `packs_in_use`, and read the files of `folder`.
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from edgemed.errors import EdgemedError, ModelCorrupt, ModelNotFound, UsageError
from edgemed.languages import later
from edgemed.languages import text as _
from edgemed.manifest import MANIFEST_NAME
from edgemed.operating_system import write_durably
from edgemed.pack_folders import (
    Counter,
    Progress,
    check_plain,
    check_present,
    check_space,
    copy_file,
    hash_file,
    is_as_installed,
    locked,
    move_file,
    naming,
    new_folder,
    no_progress,
    remove_folder,
    write_states,
)
from edgemed.paths import reference_packs_folder
from edgemed.reference_manifest import (
    ReferenceKind,
    ReferenceManifest,
    decode_reference_manifest,
    read_reference_manifest,
)
from edgemed.reference_versions import folder_names, installed_names, names_in_use, parted
from edgemed.settings import change_settings, read_settings

KEPT_VERSIONS = 2

_MAX_MANIFEST_BYTES = 2**20
_COPY_AGAIN = later("Copy the pack again from where it came.")
REPAIR = later(
    "Install the kit again, or take the update stick again: a damaged pack is replaced. If nobody needs it: "
    "edgemed library remove NAME."
)


@dataclass(frozen=True)
class InstalledPack:
    """One version of a library or a rule set."""

    manifest: ReferenceManifest
    folder: Path

    @property
    def name(self) -> str:
        """Return NAME-vVERSION."""
        return self.manifest.installed_name


@dataclass(frozen=True)
class DamagedPack:
    """A folder among the packs that holds no usable one, and why."""

    name: str
    problem: str


@dataclass(frozen=True)
class PackList:
    """What is installed; one broken folder never hides the others."""

    packs: list[InstalledPack] = field(default_factory=list)
    """By name, the oldest version first."""
    damaged: list[DamagedPack] = field(default_factory=list)


def list_packs() -> PackList:
    """List what is installed, reading manifests only; never fails."""
    found, parent = PackList(), reference_packs_folder()
    try:
        folders = [parent / name for name in folder_names()]
    except EdgemedError as error:
        return PackList(damaged=[DamagedPack(str(parent), error.message)])
    for folder in folders:
        try:
            manifest = read_reference_manifest(folder / MANIFEST_NAME)
        except ModelCorrupt as error:
            found.damaged.append(DamagedPack(folder.name, error.message))
            continue
        if manifest.installed_name == folder.name:
            found.packs.append(InstalledPack(manifest, folder))
        else:
            problem = _("Its manifest is that of {name}.", name=manifest.installed_name)
            found.damaged.append(DamagedPack(folder.name, problem))
    found.packs.sort(key=lambda pack: (pack.manifest.name, pack.manifest.version))
    return found


def packs_in_use(kind: ReferenceKind | None = None) -> list[InstalledPack]:
    """Return what the app looks things up in, one version of each; what is not there or damaged is left out.

    Raises:
        StorageError: the folder of all packs cannot be read.
    """
    names = names_chosen()
    return [pack for pack in list_packs().packs if pack.name in names and kind in (None, pack.manifest.kind)]


def names_chosen() -> list[str]:
    """Return which versions are in use by the settings, sorted; also damaged ones.

    Raises:
        StorageError: the folder of all packs cannot be read.
    """
    return names_in_use(read_settings()[0].references)


def find_pack(name: str) -> InstalledPack:
    """Return an installed version by its name NAME-vVERSION.

    Raises:
        ModelNotFound: it is not here.
        ModelCorrupt: its folder is damaged.
    """
    found = list_packs()
    for pack in found.packs:
        if pack.name == name:
            return pack
    for damaged in found.damaged:
        if damaged.name == name:
            raise ModelCorrupt(
                _("The pack {name} is damaged. {problem}", name=name, problem=damaged.problem),
                hint=_(REPAIR),
            )
    raise _not_here(name)


def _not_here(name: str) -> ModelNotFound:
    return ModelNotFound(
        _("No library or rule set {name} is installed.", name=name),
        hint=_("edgemed library list shows what is there, with versions."),
    )


def find_sound(name: str, version: int, manifest_sha256: str) -> str | None:
    """Return the name of the very same pack if it is installed and sound, or of a newer one in use.

    Raises:
        StorageError: the disk does not give its files.
    """
    for other in names_chosen():
        if parted(other)[0] == name and parted(other)[1] > version:
            return other
    for pack in list_packs().packs:
        if (pack.manifest.name, pack.manifest.version) != (name, version):
            continue
        try:
            check_or_verify(pack)
        except ModelCorrupt:
            return None
        return pack.name if _sha256(pack.folder / MANIFEST_NAME) == manifest_sha256 else None
    return None


def install_pack(
    source: Path,
    *,
    manifest_sha256: str | None = None,
    progress: Progress | None = None,
    move: bool = False,
) -> InstalledPack:
    """Install a folder of files with their manifest beside the older versions; it is not in use by that.

    Returns what is there when the very same pack is installed and sound; a damaged one is replaced.

    Args:
        manifest_sha256: what the source's manifest.json must have.
        move: take the files out of the source, which lies on the same disk, instead of copying them.

    Raises:
        UsageError: other files are installed under this version.
        ModelCorrupt: the source is not what its manifest says; names the file.
        StorageError: no space, or a disk that fails.
    """
    check_plain(source / MANIFEST_NAME, _MAX_MANIFEST_BYTES, _(_COPY_AGAIN))
    raw = _bytes(source / MANIFEST_NAME)
    if manifest_sha256 not in (None, hashlib.sha256(raw).hexdigest()):
        raise _damaged(source / MANIFEST_NAME)
    manifest = decode_reference_manifest(raw, source / MANIFEST_NAME)
    for file in manifest.files:
        check_plain(source / file.name, file.size_bytes, _(_COPY_AGAIN))
        check_present(source / file.name, file, _(_COPY_AGAIN))
    target = reference_packs_folder() / manifest.installed_name
    with locked(target.parent):
        there = installed_already(manifest)
        if there is not None:
            return there
        if not move:
            check_space(target.parent, manifest.installed_name, manifest.size_bytes)
        _pin_in_use()
        if target.exists():
            remove_folder(target)
        done = Counter(progress or no_progress, manifest.size_bytes)
        with new_folder(target) as staged:
            _fill(source, manifest, staged, done, move=move)
            with naming(staged):
                write_durably(staged / MANIFEST_NAME, raw)
    return InstalledPack(manifest, target)


def installed_already(manifest: ReferenceManifest) -> InstalledPack | None:
    """Return the very same pack if it is installed and sound, None if it is not there or damaged.

    Raises:
        UsageError: other files have this name and version, or one that only differs in case.
        StorageError: the disk does not give them.
    """
    name = manifest.installed_name
    pack = next((pack for pack in list_packs().packs if pack.name.lower() == name.lower()), None)
    if pack is None:
        return None
    if pack.manifest != manifest:
        raise UsageError(
            _("Other files are installed as {name}.", name=pack.name),
            hint=_("Tell headquarters: what changes needs a higher version."),
        )
    try:
        check_or_verify(pack)
    except ModelCorrupt:
        return None
    return pack


def _pin_in_use() -> None:
    """Write down what is in use where nobody did, so that a newer version is not in use by being there."""
    settings, problems = read_settings()
    if settings.references is None and not problems:
        change_settings(references=names_in_use(None))


def _fill(source: Path, manifest: ReferenceManifest, staged: Path, done: Counter, *, move: bool) -> None:
    take = move_file if move else copy_file
    for file in manifest.files:
        if take(source / file.name, staged / file.name, file.size_bytes, done) != file.sha256:
            raise _damaged(source / file.name)
    write_states(staged, manifest.files)


def _damaged(path: Path) -> ModelCorrupt:
    return ModelCorrupt(
        _("{path} is damaged: its SHA-256 is not the signed one.", path=path), hint=_(_COPY_AGAIN)
    )


def _bytes(path: Path) -> bytes:
    with naming(path):
        return path.read_bytes()


def _sha256(path: Path) -> str:
    return hashlib.sha256(_bytes(path)).hexdigest()


def check_unchanged(pack: InstalledPack) -> None:
    """Compare size and modification time with those at installation: cheap enough for each start.

    Raises:
        ModelCorrupt: a file is missing or changed; names it, or the pack.
        StorageError: the disk does not say.
    """
    for file in pack.manifest.files:
        check_present(pack.folder / file.name, file, _(REPAIR))
    if not is_as_installed(pack.folder, pack.manifest.files):
        raise ModelCorrupt(
            _("The files of {name} changed since it was installed.", name=pack.name), hint=_(REPAIR)
        )


def verify_pack(pack: InstalledPack, progress: Progress | None = None) -> None:
    """Read every byte again and compare; a sound pack counts as unchanged from now on.

    Raises:
        ModelCorrupt: names the first file that is not as it should be.
        StorageError: the disk does not give a file.
    """
    done = Counter(progress or no_progress, pack.manifest.size_bytes)
    for file in pack.manifest.files:
        path = pack.folder / file.name
        check_present(path, file, _(REPAIR))
        if hash_file(path, done) != file.sha256:
            raise ModelCorrupt(
                _("{name} is damaged: its SHA-256 is not the one in the manifest.", name=path),
                hint=_(REPAIR),
            )
    if not is_as_installed(pack.folder, pack.manifest.files):
        write_states(pack.folder, pack.manifest.files, replace=True)


def check_or_verify(pack: InstalledPack) -> None:
    """Do the cheap check, and read every byte where it fails: a restored copy has other times.

    Raises:
        ModelCorrupt: names what is damaged.
        StorageError: the disk does not give it.
    """
    try:
        check_unchanged(pack)
    except ModelCorrupt:
        verify_pack(pack)


def remove_pack(name: str) -> None:
    """Delete one version, also a damaged one; the settings may go on naming it.

    Raises:
        ModelNotFound: it is not here.
        StorageError: the disk refuses.
    """
    if name not in folder_names():
        raise _not_here(name)
    with locked(reference_packs_folder()):
        remove_folder(reference_packs_folder() / name, _("Close edgemed, then try again."))


def remove_old_versions(keep: Collection[str]) -> tuple[list[str], list[str]]:
    """Delete all but the two newest versions of each pack, also damaged ones; a failure costs only space.

    Args:
        keep: names NAME-vVERSION that stay in any case.

    Returns:
        The names of what was deleted, and a sentence if one could not be.
    """
    removed, problems = [], []
    try:
        names = installed_names()
        for name in names:
            pack, version = parted(name)
            newer = [each for each in names if parted(each)[0] == pack and parted(each)[1] > version]
            if len(newer) >= KEPT_VERSIONS and name not in keep:
                remove_pack(name)
                removed.append(name)
    except EdgemedError as error:
        problems.append(error.message)
    return removed, problems
