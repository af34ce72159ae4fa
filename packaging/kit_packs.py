"""The kit's models, adapters, libraries, rule sets, and the Python that a Windows kit carries."""

import tomllib
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from kit_files import Entry
from kit_lock import FOLDER
from reference_source import ReferenceSource, check_names, read_reference_source

from edgemed.checksums import sha256_of_file
from edgemed.errors import StorageError, UsageError
from edgemed.kit_format import KitPack
from edgemed.manifest import MANIFEST_NAME, MODEL_CARD_NAME, ModelManifest, read_manifest

EMBED_FILE = FOLDER / "python_embed.toml"


@dataclass(frozen=True)
class Pack:
    """One pack that goes into the kit."""

    folder: Path
    manifest: ModelManifest

    @property
    def kit_folder(self) -> str:
        """Return its folder within the kit."""
        return f"packs/{self.manifest.name}"

    @property
    def listed(self) -> KitPack:
        """Return what kit.json says of it."""
        manifest = self.manifest
        return KitPack(
            kind=manifest.kind,
            name=manifest.name,
            folder=self.kit_folder,
            size_bytes=manifest.size_bytes,
            sha256=manifest.sha256,
            base_sha256=manifest.base_sha256,
        )


def read_packs(folders: Iterable[Path], known_sha256: Iterable[str]) -> list[Pack]:
    """Read the manifests of packs, sorted by name.

    Args:
        known_sha256: of models that every installation has, as the base of an adapter.

    Raises:
        ModelCorrupt: a manifest is not valid.
        UsageError: two packs of one name, a file that is missing, or an adapter without its base.
    """
    packs = sorted(
        (Pack(folder, read_manifest(folder / MANIFEST_NAME)) for folder in folders),
        key=lambda pack: pack.manifest.name,
    )
    models = {*known_sha256, *(pack.manifest.sha256 for pack in packs if pack.manifest.kind == "model")}
    for earlier, pack in pairwise(packs):
        if earlier.manifest.name.lower() == pack.manifest.name.lower():
            raise UsageError(f"Two packs are named {pack.manifest.name}.", hint="A kit can hold one of them.")
    for pack in packs:
        base = pack.manifest.base_sha256
        if pack.manifest.kind == "adapter" and base not in models:
            raise UsageError(
                f"The adapter {pack.manifest.name} needs the base model with the SHA-256 {base}, "
                "which is not in the kit.",
                hint="Name the base model's pack with --model too.",
            )
    return packs


def pack_entries(pack: Pack) -> list[Entry]:
    """Return the files of a pack; those that the manifest names must have its hashes.

    Raises:
        UsageError: a file is missing, or the pack holds a folder.
    """
    hashes = {file.name: file.sha256 for file in pack.manifest.files}
    try:
        present = {path.name: path for path in pack.folder.iterdir() if not path.name.startswith(".")}
    except OSError as error:
        raise UsageError(f"{pack.folder} cannot be read: {error.strerror}.") from error
    for name in hashes:
        if name not in present:
            raise UsageError(f"The pack {pack.folder} has no {name}.", hint="Make or copy the pack again.")
    return [Entry(f"{pack.kit_folder}/{name}", path, hashes.get(name)) for name, path in present.items()]


def read_references(folders: Iterable[Path], models: Iterable[Pack]) -> list[ReferenceSource]:
    """Read libraries and rule sets, every byte of them; sorted by name.

    Raises:
        UsageError: a folder holds none, or two packs have one name.
    """
    found = sorted(map(read_reference_source, folders), key=lambda source: source.manifest.name)
    check_names([pack.manifest.name for pack in models] + [source.manifest.name for source in found])
    return found


def listed_reference(source: ReferenceSource) -> KitPack:
    """Return what kit.json says of a library or rule set."""
    manifest = source.manifest
    return KitPack(
        kind=manifest.kind,
        name=manifest.name,
        version=manifest.version,
        folder=f"packs/{manifest.name}",
        size_bytes=manifest.size_bytes,
        sha256=source.manifest_sha256,
    )


def reference_entries(source: ReferenceSource) -> list[Entry]:
    """Return the files of a library or rule set, and its manifest."""
    folder = listed_reference(source).folder
    files = [
        Entry(f"{folder}/{file.name}", source.folder / file.name, file.sha256)
        for file in source.manifest.files
    ]
    return [*files, Entry(f"{folder}/{MANIFEST_NAME}", source.manifest_bytes)]


def library_entries(files: Iterable[Path]) -> list[Entry]:
    """Return the files of the kit's folder `library`: people read them from the stick."""
    return [Entry(f"library/{path.name}", path) for path in files]


def embedded_manifests(app_wheel: Path) -> list[ModelManifest]:
    """Return the manifests of the models inside edgemed's wheel."""
    import msgspec

    with zipfile.ZipFile(app_wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith("edgemed/data/")]
        return [
            msgspec.json.decode(archive.read(name), type=ModelManifest)
            for name in sorted(names)
            if name.endswith(f"/{MANIFEST_NAME}")
        ]


def embedded_cards(app_wheel: Path) -> list[Entry]:
    """Return the cards of the models inside edgemed's wheel, for the kit's folder `licences`."""
    with zipfile.ZipFile(app_wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith("edgemed/data/")]
        return [
            Entry(f"licences/models/{name.split('/')[-2]}.md", archive.read(name))
            for name in names
            if name.endswith(f"/{MODEL_CARD_NAME}")
        ]


@dataclass(frozen=True)
class CarriedPython:
    """python.org's embeddable Python for Windows, unpacked."""

    version: str
    entries: list[Entry]

    @property
    def minor(self) -> str:
        """Return such as 3.12."""
        return ".".join(self.version.split(".")[:2])


def read_python(archive_path: Path, pins: Path = EMBED_FILE) -> CarriedPython:
    """Return the files of the embeddable zip, for the kit's folder `python`.

    Raises:
        UsageError: the zip is not one that is pinned in python_embed.toml.
        StorageError: it cannot be read.
    """
    try:
        sha256 = sha256_of_file(archive_path)
        pinned = tomllib.loads(pins.read_text(encoding="utf-8")).get("python", [])
    except OSError as error:
        raise StorageError(f"{error.filename} cannot be read: {error.strerror}.") from error
    pin = next((pin for pin in pinned if pin["sha256"] == sha256), None)
    if pin is None:
        raise UsageError(
            f"{archive_path.name} has the SHA-256 {sha256}, which {pins.name} does not name.",
            hint="Fetch it again. If python.org gives this hash for a newer version, add it there.",
        )
    with zipfile.ZipFile(archive_path) as archive:
        files = [info for info in archive.infolist() if not info.is_dir()]
        return CarriedPython(
            pin["version"], [Entry(f"python/{info.filename}", archive.read(info)) for info in files]
        )
