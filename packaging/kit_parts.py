"""What a kit is made of: all that the order names is read and checked here, before the long work."""

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from kit_files import Entry, check_entries
from kit_lock import DEFAULT_PYTHONS, FOLDER, LockedWheel, read_lock, read_wheels
from kit_packs import (
    EMBED_FILE,
    CarriedPython,
    Pack,
    embedded_cards,
    embedded_manifests,
    library_entries,
    pack_entries,
    read_packs,
    read_python,
    read_references,
    reference_entries,
)
from kit_signature import SecretKey, read_secret_key
from kit_wheel import Wheel
from kit_wheelhouse import Locked, build_app_wheel, choose, read_app_wheel, read_engine_wheel
from reference_source import ReferenceSource

from edgemed.errors import UsageError
from edgemed.kit_format import KitPlatform
from edgemed.manifest import ModelManifest
from edgemed.pieces import LARGEST_PIECE_BYTES

REPOSITORY = FOLDER.parent
_OWN_MODULES = ("__init__.py", "errors.py", "minisign.py", "checksums.py", "kit_list.py", "kit_stick.py")
"""Of edgemed, that the installer runs from the stick: they need nothing but the standard library."""
_TEXTS_BYTES = 500_000
"""Licences, manual, SBOM and lists together, about; the estimate has it before they are written."""

Tell = Callable[[str], None]
"""Shows a line to the person who builds."""


@dataclass(frozen=True)
class Order:
    """What shall be built."""

    platform: KitPlatform
    out: Path
    engine_wheel: Path
    pythons: list[str] = field(default_factory=lambda: list(DEFAULT_PYTHONS))
    models: list[Path] = field(default_factory=list)
    libraries: list[Path] = field(default_factory=list)
    """Folders of libraries and rule sets, which are installed; files, which people read from the stick."""
    key: Path | None = None
    """None: the kit is not signed."""
    update_root: Path | None = None
    """TUF's root.json, by which later updates are checked."""
    python_embed: Path | None = None
    wheels: Path | None = None
    """Where fetched wheels lie and stay; None: a folder that is deleted afterwards."""
    app_wheel: Path | None = None
    """edgemed's wheel; None: it is built from this source."""
    overwrite: bool = False
    estimate_only: bool = False
    locked: Locked | None = None
    """None: what lock.py wrote."""
    installer: Path = FOLDER / "installer"
    embed_pins: Path = EMBED_FILE
    created_seconds: int | None = None
    """None: SOURCE_DATE_EPOCH, or the date of the last commit."""
    piece_bytes: int = LARGEST_PIECE_BYTES


@dataclass(frozen=True)
class Parts:
    """What the kit is made of, before a byte of it is written."""

    order: Order
    created_seconds: int
    pythons: list[str]
    key: SecretKey | None
    locked: Locked
    chosen: list[LockedWheel]
    app: Wheel
    engine: Wheel
    python: CarriedPython | None
    embedded: list[ModelManifest]
    packs: list[Pack]
    references: list[ReferenceSource]
    library_files: list[Path]
    entries: list[Entry]
    """All but the wheels from the index and the texts."""

    @property
    def version(self) -> str:
        return self.app.version

    @property
    def kit_name(self) -> str:
        return f"edgemed-kit-{self.version}-{self.order.platform}"

    @property
    def created(self) -> str:
        return datetime.fromtimestamp(self.created_seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    @property
    def python_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self.python.entries) if self.python else 0

    @property
    def size_bytes(self) -> int:
        own = sum(entry.size_bytes for entry in self.entries)
        return own + sum(wheel.size_bytes for wheel in self.chosen) + _TEXTS_BYTES


def source_date(repository: Path) -> int:
    """Return the date of the source in seconds since 1970: SOURCE_DATE_EPOCH, or that of the last commit.

    Raises:
        UsageError: neither is known.
    """
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not given:
        command = ["git", "-C", str(repository), "log", "-1", "--format=%ct"]
        try:
            given = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        except OSError:
            given = ""
    if not given.isascii() or not given.isdigit():
        raise UsageError(
            "The date of the source is not known.",
            hint="Set SOURCE_DATE_EPOCH to seconds since 1970, or build from a git checkout.",
        )
    return int(given)


def gather(order: Order, scratch: Path, cache: Path, tell: Tell) -> Parts:
    """Read and check all that goes into the kit, so that it fails before the long work."""
    locked = order.locked or Locked(read_lock(), read_wheels())
    created_seconds = source_date(REPOSITORY) if order.created_seconds is None else order.created_seconds
    python = _carried_python(order)
    pythons = [python.minor] if python else sorted(set(order.pythons), key=lambda name: int(name[2:]))
    chosen = choose(locked, order.platform, pythons)
    engine = read_engine_wheel(order.engine_wheel, order.platform)
    key = read_secret_key(order.key) if order.key else None
    if order.app_wheel is None:
        tell("building edgemed's wheel")
    app = read_app_wheel(
        order.app_wheel or build_app_wheel(REPOSITORY, scratch, locked, cache, created_seconds)
    )
    embedded = embedded_manifests(app.path)
    packs = read_packs(order.models, (model.sha256 for model in embedded))
    references = read_references([path for path in order.libraries if path.is_dir()], packs)
    library_files = [path for path in order.libraries if not path.is_dir()]
    entries = [Entry(f"wheels/{wheel.path.name}", wheel.path) for wheel in (app, engine)]
    entries += embedded_cards(app.path)
    entries += [entry for pack in packs for entry in pack_entries(pack)]
    entries += [entry for source in references for entry in reference_entries(source)]
    entries += library_entries(library_files)
    entries += _installer_entries(order.installer, key)
    entries += python.entries if python else []
    if order.update_root:
        entries.append(Entry("root.json", order.update_root))
    entries = check_entries(entries)
    return Parts(
        order=order,
        created_seconds=created_seconds,
        pythons=pythons,
        key=key,
        locked=locked,
        chosen=chosen,
        app=app,
        engine=engine,
        python=python,
        embedded=embedded,
        packs=packs,
        references=references,
        library_files=library_files,
        entries=entries,
    )


def _carried_python(order: Order) -> CarriedPython | None:
    if order.python_embed is None:
        return None
    if order.platform != "windows-x86_64":
        raise UsageError(
            "--python-embed is for Windows kits.", hint="On Linux the system's own Python is used."
        )
    return read_python(order.python_embed, order.embed_pins)


def _installer_entries(folder: Path, key: SecretKey | None) -> list[Entry]:
    """Return install.sh and install.cmd, and the folder `install`."""
    starters = [folder / "install.sh", folder / "install.cmd"]
    modules = sorted(folder.glob("*.py"))
    if not modules or not all(path.is_file() for path in starters):
        raise UsageError(f"{folder} holds no installer.", hint="Take a whole source tree.")
    entries = [Entry(path.name, path) for path in starters]
    entries += [Entry(f"install/{path.name}", path) for path in modules]
    entries += [Entry(f"install/edgemed/{name}", REPOSITORY / "edgemed" / name) for name in _OWN_MODULES]
    if key:
        entries.append(Entry("install/edgemed.pub", key.public_text.encode("ascii")))
    return entries


def sizes(parts: Parts) -> str:
    """Return what the parts cost in megabytes, each Python for itself: wheels that serve it alone."""
    shared = sum(wheel.size_bytes for wheel in parts.chosen if not _only_for(wheel, parts.pythons))
    costs = {
        "edgemed": parts.app.path.stat().st_size,
        "engine": parts.engine.path.stat().st_size,
        "wheels for all Pythons": shared,
        **{f"for Python {python} alone": _cost(parts, python) for python in parts.pythons},
        "packs": sum(pack.listed.size_bytes for pack in parts.packs)
        + sum(source.manifest.size_bytes for source in parts.references),
    }
    return ", ".join(f"{what} {size / 1e6:,.1f}" for what, size in costs.items())


def _only_for(wheel: LockedWheel, pythons: list[str]) -> str | None:
    served = [python for python in pythons if python in wheel.pythons]
    return served[0] if "-none-any" not in wheel.file and "abi3" not in wheel.file else None


def _cost(parts: Parts, python: str) -> int:
    return sum(wheel.size_bytes for wheel in parts.chosen if _only_for(wheel, parts.pythons) == python)
