"""At headquarters: make the keys of updates, replace them, and publish packs on an update stick.

    python packaging/publish_update.py keys KEYS            once, offline (docs/updates.md has the ceremony)
    python packaging/publish_update.py rotate KEYS ROLE…    new keys for some roles, signed by the root keys
    python packaging/publish_update.py publish STICK --keys KEYS --pack PACK…

KEYS holds ROLE.pem (private, encrypted), `metadata/` (all that was published) and `published.json` (the
version of each pack). Needs the extra `hq`.
"""

import argparse
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from reference_source import check_names
from update_keys import (
    ONLINE_ROLES,
    ask_passphrase,
    in_years,
    make_keys,
    newest_root,
    now,
    read_signer,
    rotate_keys,
)
from update_packs import PublishedPack, check_published, checked_pack, write_pack

from edgemed.checksums import same_on_fat
from edgemed.errors import EdgemedError, StorageError, UsageError
from edgemed.operating_system import write_atomically
from edgemed.pack_folders import storage_error
from edgemed.pieces import LARGEST_PIECE_BYTES
from edgemed.update_format import METADATA_FOLDER, TARGETS_FOLDER
from edgemed.update_stick import CREATED_FIELD, ROOT_NAME, read_stick

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner
    from tuf.api.metadata import TargetFile

RESUME_PIECE_BYTES = 256 * 2**20
"""A copy that was interrupted begins again at the last whole piece."""
EXPIRES_YEARS = 10

_RECORD_NAME = "published.json"
_VERSIONED = ("targets.json", "snapshot.json", "timestamp.json")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return its exit code."""
    parser = argparse.ArgumentParser(description="Keys and sticks for `edgemed update`. See docs/updates.md.")
    commands = parser.add_subparsers(required=True)
    keys = commands.add_parser("keys", help="make all keys and the first root.json; do this offline")
    keys.add_argument("folder", type=Path, metavar="KEYS")
    keys.add_argument("--root-keys", type=int, default=2, metavar="N", help="keys of the root; default 2")
    keys.add_argument("--root-threshold", type=int, default=1, metavar="N", help="that must sign; default 1")
    keys.set_defaults(run=lambda given: make_keys(given.folder, given.root_keys, given.root_threshold))
    rotate = commands.add_parser("rotate", help="replace keys that are lost, known to others or old")
    rotate.add_argument("folder", type=Path, metavar="KEYS")
    rotate.add_argument("roles", nargs="+", metavar="KEY", help="targets, snapshot, timestamp, root-1 …")
    rotate.set_defaults(run=lambda given: rotate_keys(given.folder, given.roles))
    publish = commands.add_parser("publish", help="write signed packs on a stick")
    publish.add_argument("stick", type=Path, metavar="STICK")
    publish.add_argument("--keys", type=Path, required=True, metavar="KEYS")
    publish.add_argument("--pack", type=Path, action="append", required=True, metavar="PACK", dest="packs")
    publish.add_argument("--expires-years", type=int, default=EXPIRES_YEARS, metavar="N")
    publish.add_argument("--piece-bytes", type=int, default=RESUME_PIECE_BYTES, metavar="N")
    publish.set_defaults(
        run=lambda given: publish_stick(
            given.stick,
            given.keys,
            given.packs,
            expires_years=given.expires_years,
            piece_bytes=given.piece_bytes,
        )
    )
    given = parser.parse_args(arguments)
    try:
        given.run(given)
    except EdgemedError as error:
        print(f"error: {error.message}", f"hint: {error.hint}", sep="\n", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: {storage_error(error, Path('?')).message}", file=sys.stderr)
        return StorageError.exit_code
    return 0


# Publishing.


def publish_stick(
    stick: Path,
    keys: Path,
    packs: list[Path],
    *,
    expires_years: int = EXPIRES_YEARS,
    piece_bytes: int = RESUME_PIECE_BYTES,
) -> int:
    """Write packs and their signed metadata on a stick; return the update's version.

    The new version is recorded in the keys' folder before the stick is complete, so that no number is given
    twice. timestamp.json is written last: an unfinished stick is refused.

    Raises:
        UsageError: a pack is no folder of plain files with a manifest or pack.toml, names clash, a
            version was given to something else, or keys are missing.
        ModelError: a pack holds no usable model, or is damaged.
        StorageError: no space on the stick.
    """
    if not 1 <= piece_bytes <= LARGEST_PIECE_BYTES:
        raise UsageError(f"Pieces have from 1 to {LARGEST_PIECE_BYTES:,} bytes.")
    passphrase = ask_passphrase("Passphrase of the keys: ")
    signers = {role: read_signer(keys / f"{role}.pem", passphrase) for role in ONLINE_ROLES}
    _check_signers(keys, signers)
    version = _next_version(stick, keys)
    sources = [checked_pack(path) for path in packs]
    check_names(source.manifest.name for source in sources)
    published = _read_published(keys)
    for source in sources:
        check_published(source, published)
    _check_space(stick, packs)
    _clear(stick)
    for path in sorted((keys / METADATA_FOLDER).glob(f"*.{ROOT_NAME}")):
        write_atomically(stick / METADATA_FOLDER / path.name, path.read_bytes())
    targets: dict[str, TargetFile] = {}
    for source in sources:
        entry = write_pack(source, stick, published, targets, piece_bytes)
        print(f"{entry.name} version {entry.version}: {entry.size_bytes:,} bytes")
    if same := same_on_fat(targets):
        raise UsageError(f"Two names differ only in case: {same}")
    signed = _sign(targets, signers, version, expires_years)
    for name, data in signed.items():
        write_atomically(keys / METADATA_FOLDER / name, data)
    write_atomically(
        keys / _RECORD_NAME, msgspec.json.format(msgspec.json.encode(published), indent=2) + b"\n"
    )
    for name in _VERSIONED:
        write_atomically(stick / METADATA_FOLDER / name, signed[name])
    _check_as_a_clinic(stick, keys)
    print(f"{stick} is update {version}.")
    return version


def _check_signers(keys: Path, signers: "dict[str, CryptoSigner]") -> None:
    root = newest_root(keys).signed
    for role, signer in signers.items():
        if signer.public_key.keyid not in root.roles[role].keyids:
            raise UsageError(
                f"{keys / role}.pem is not the key that {ROOT_NAME} names.",
                hint="Take the keys and root.json of one folder.",
            )


def _next_version(stick: Path, keys: Path) -> int:
    """Return one more than was ever published, also when the stick knows of more than the keys' folder."""
    versions = [0]
    for folder in (keys / METADATA_FOLDER, stick / METADATA_FOLDER):
        for name in _VERSIONED:
            try:
                signed = msgspec.json.decode((folder / name).read_bytes())["signed"]
                versions.append(int(signed["version"]))
            except FileNotFoundError:
                pass
            except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
                raise UsageError(
                    f"{folder / name} is damaged.", hint="Delete it if it is on the stick."
                ) from error
    return max(versions) + 1


def _sign(
    targets: "dict[str, TargetFile]", signers: "dict[str, CryptoSigner]", version: int, expires_years: int
) -> dict[str, bytes]:
    """Return targets.json, snapshot.json and timestamp.json, each with the hash of the one before."""
    from tuf.api.metadata import Metadata, MetaFile, Snapshot, Targets, Timestamp

    expires = in_years(expires_years)
    list_of_files = Metadata(Targets(version=version, expires=expires, targets=targets))
    list_of_files.sign(signers["targets"])
    targets_bytes = list_of_files.to_bytes()
    snapshot = Metadata(Snapshot(version=version, expires=expires))
    snapshot.signed.meta["targets.json"] = MetaFile.from_data(version, targets_bytes, ["sha256"])
    snapshot.sign(signers["snapshot"])
    snapshot_bytes = snapshot.to_bytes()
    created = {CREATED_FIELD: f"{now():%Y-%m-%dT%H:%M:%SZ}"}
    timestamp = Metadata(Timestamp(version=version, expires=expires, unrecognized_fields=created))
    timestamp.signed.snapshot_meta = MetaFile.from_data(version, snapshot_bytes, ["sha256"])
    timestamp.sign(signers["timestamp"])
    return dict(zip(_VERSIONED, (targets_bytes, snapshot_bytes, timestamp.to_bytes()), strict=True))


def _clear(stick: Path) -> None:
    """Delete the last update from the stick, its timestamp first; nothing else is touched."""
    metadata = stick / METADATA_FOLDER
    if (stick / TARGETS_FOLDER).exists() and not any(metadata.glob(f"*.{ROOT_NAME}")):
        raise UsageError(
            f"{stick / TARGETS_FOLDER} is there, and no update wrote it.",
            hint="Name an empty stick or folder.",
        )
    metadata.mkdir(parents=True, exist_ok=True)
    for name in reversed(_VERSIONED):
        (metadata / name).unlink(missing_ok=True)
    if (stick / TARGETS_FOLDER).exists():
        shutil.rmtree(stick / TARGETS_FOLDER)
    (stick / TARGETS_FOLDER).mkdir()


def _check_space(stick: Path, packs: list[Path]) -> None:
    stick.mkdir(parents=True, exist_ok=True)
    needed = sum(file.stat().st_size for path in packs for file in path.iterdir())
    old = [path for path in (stick / TARGETS_FOLDER).rglob("*") if path.is_file()]
    free = shutil.disk_usage(stick).free + sum(path.stat().st_size for path in old)
    if free < needed * 1.01 + 2**20:
        raise StorageError(
            f"The packs need {needed / 1e6:,.0f} MB, and {stick} has {free / 1e6:,.0f} MB free."
        )


def _check_as_a_clinic(stick: Path, keys: Path) -> None:
    """Read the finished stick as a clinic that trusts only the first root."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(keys / METADATA_FOLDER / f"1.{ROOT_NAME}", Path(folder) / ROOT_NAME)
        read_stick(stick, Path(folder))


def _read_published(keys: Path) -> dict[str, PublishedPack]:
    try:
        return msgspec.json.decode((keys / _RECORD_NAME).read_bytes(), type=dict[str, PublishedPack])
    except FileNotFoundError:
        return {}
    except msgspec.DecodeError as error:
        raise UsageError(
            f"{keys / _RECORD_NAME} is damaged.", hint="Take it from the last backup."
        ) from error


if __name__ == "__main__":
    sys.exit(main())
