"""Write a kit: all its files and the signed list of them, in one folder that appears whole or not at all."""

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path

from kit_download import fetch
from kit_files import Entry, check_entries, check_space, new_folder, write_entries
from kit_licences import licence_entries
from kit_packs import listed_reference
from kit_parts import Order, Parts, Tell, gather, sizes
from kit_sbom import sbom_entry
from kit_signature import sign
from kit_text import Facts, text_entries
from kit_wheelhouse import Wheelhouse, read_wheelhouse

from edgemed.checksums import SIGNATURE_NAME, SUMS_NAME, encode_sums
from edgemed.errors import StorageError
from edgemed.kit_format import KIT_NAME, KitFile, KitManifest, encode_kit


def build_kit(order: Order, tell: Tell = lambda _line: None) -> Path | None:
    """Build a kit and return its folder; None if only the estimate was asked for.

    Raises:
        EdgemedError: something is missing, damaged, too large, or there already; nothing is left behind.
    """
    with tempfile.TemporaryDirectory(prefix="edgemed-kit-") as scratch:
        cache = order.wheels or Path(scratch) / "wheels"
        _make_folder(cache)
        parts = gather(order, Path(scratch), cache, tell)
        count = len(parts.entries) + len(parts.chosen)
        tell(f"{parts.kit_name}: about {parts.size_bytes / 1e6:,.1f} MB in {count}+ files, {sizes(parts)}")
        if order.estimate_only:
            return None
        _make_folder(order.out)
        check_space(order.out, parts.size_bytes, count, "Make room, or name another disk with --out.")
        target = order.out / parts.kit_name
        with new_folder(target, overwrite=order.overwrite) as folder:
            tell(f"fetching {len(parts.chosen)} wheels")
            fetch(parts.chosen, order.platform, cache)
            _write(parts, cache, folder, tell)
    tell(f"built {target}")
    return target


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder} cannot be made: {error.strerror}.", hint="Name another one.") from error


def _write(parts: Parts, cache: Path, folder: Path, tell: Tell) -> None:
    wheelhouse = read_wheelhouse(
        parts.locked,
        parts.chosen,
        cache,
        app=parts.app,
        engine=parts.engine,
        platform=parts.order.platform,
        pythons=parts.pythons,
    )
    if not wheelhouse.portable_engine:
        tell("warning: the engine was built for one processor; other computers may not run it")
    entries = parts.entries + _wheel_entries(parts, wheelhouse, cache) + _listed_entries(parts, wheelhouse)
    entries += text_entries(_facts(parts, wheelhouse, sum(entry.size_bytes for entry in entries)))
    entries = check_entries(entries)
    files = write_entries(
        entries,
        folder,
        parts.created_seconds,
        _progress(sum(entry.size_bytes for entry in entries), tell),
        parts.order.piece_bytes,
    )
    _seal(parts, _manifest(parts, wheelhouse, files), folder)


def _wheel_entries(parts: Parts, wheelhouse: Wheelhouse, cache: Path) -> list[Entry]:
    entries = [Entry(f"wheels/{wheel.file}", cache / wheel.file, wheel.sha256) for wheel in parts.chosen]
    return [*entries, Entry("wheels/requirements.lock", wheelhouse.requirements)]


def _listed_entries(parts: Parts, wheelhouse: Wheelhouse) -> list[Entry]:
    models = [*parts.embedded, *(pack.manifest for pack in parts.packs)]
    references = [source.manifest for source in parts.references]
    python = parts.python.version if parts.python else None
    sbom = sbom_entry(
        parts.kit_name, parts.version, parts.created_seconds, wheelhouse, [*models, *references], python
    )
    return [sbom, *licence_entries(wheelhouse, models, references, python)]


def _facts(parts: Parts, wheelhouse: Wheelhouse, kit_bytes: int) -> Facts:
    return Facts(
        version=parts.version,
        platform=parts.order.platform,
        created=parts.created,
        kit_bytes=kit_bytes,
        installed_bytes=wheelhouse.installed_bytes + parts.python_bytes,
        pythons=parts.pythons,
        carried_python=parts.python.version if parts.python else None,
        key=parts.key.public_key if parts.key else None,
        portable_engine=wheelhouse.portable_engine,
        embedded=parts.embedded,
        packs=[pack.manifest for pack in parts.packs],
        references=[source.manifest for source in parts.references],
        library_files=sorted(path.name for path in parts.library_files),
        update_root=parts.order.update_root is not None and parts.key is not None,
    )


def _manifest(parts: Parts, wheelhouse: Wheelhouse, files: list[KitFile]) -> KitManifest:
    return KitManifest(
        version=parts.version,
        platform=parts.order.platform,
        python_minimum=parts.pythons[0],
        pythons=parts.pythons,
        carried_python=parts.python.version if parts.python else None,
        created=parts.created,
        signed=parts.key is not None,
        portable_engine=wheelhouse.portable_engine,
        public_key=parts.key.public_key.line if parts.key else None,
        size_bytes=sum(file.size_bytes for file in files),
        installed_bytes=wheelhouse.installed_bytes + parts.python_bytes,
        packs=[*(pack.listed for pack in parts.packs), *map(listed_reference, parts.references)],
        libraries=sorted(f"library/{path.name}" for path in parts.library_files),
        files=files,
    )


def _seal(parts: Parts, manifest: KitManifest, folder: Path) -> None:
    """Write kit.json, SHA256SUMS and its signature."""
    listed = encode_kit(manifest)
    sums = {KIT_NAME: hashlib.sha256(listed).hexdigest()}
    for file in manifest.files:
        sums |= {piece.path: piece.sha256 for piece in file.pieces} or {file.path: file.sha256}
    last = [Entry(KIT_NAME, listed), Entry(SUMS_NAME, encode_sums(sums))]
    if parts.key:
        comment = f"edgemed {parts.version} {parts.order.platform} {parts.created}"
        signature = sign(encode_sums(sums), parts.key, comment)
        last.append(Entry(SIGNATURE_NAME, signature.encode("utf-8")))
    write_entries(last, folder, parts.created_seconds, lambda _more: None, parts.order.piece_bytes)


def _progress(total_bytes: int, tell: Tell) -> Callable[[int], None]:
    """Return what is told each file's bytes, and tells each tenth of the work."""
    done, shown = 0, 0

    def add(more_bytes: int) -> None:
        nonlocal done, shown
        done += more_bytes
        if done * 10 // max(total_bytes, 1) > shown:
            shown = done * 10 // max(total_bytes, 1)
            tell(f"written {shown * 10} %, {done / 1e6:,.1f} MB")

    return add
