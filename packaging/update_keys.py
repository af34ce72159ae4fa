"""The keys of updates: make them, replace them, open them. Called by `publish_update.py`.

Private keys are Ed25519 in PKCS #8, encrypted with a passphrase; root.json says which keys may
sign what.
"""

import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passwords import ask_password

from edgemed.errors import UsageError
from edgemed.operating_system import fsync_file, write_atomically
from edgemed.update_format import METADATA_FOLDER
from edgemed.update_stick import ROOT_NAME, fingerprint

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner
    from tuf.api.metadata import Metadata, Root

ONLINE_ROLES = ("targets", "snapshot", "timestamp")
PASSPHRASE_VARIABLE = "EDGEMED_KEY_PASSPHRASE"

_ROOT_EXPIRES_YEARS = 20
_NAME_FIELD = "x-edgemed-name"
"""In each public key of root.json, so that a lost key can be replaced."""
_SHORTEST_PASSPHRASE = 12


def make_keys(folder: Path, root_keys: int = 2, root_threshold: int = 1) -> None:
    """Make all keys and a root.json that they sign.

    Raises:
        UsageError: there are keys already, or the numbers make no sense.
    """
    from tuf.api.metadata import Metadata, Root

    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty.", hint="Name a new folder; keys are never overwritten.")
    if not 1 <= root_threshold <= root_keys:
        raise UsageError(f"{root_threshold} of {root_keys} root keys cannot sign.")
    passphrase = _new_passphrase()
    folder.mkdir(parents=True, exist_ok=True)
    root = Root(expires=in_years(_ROOT_EXPIRES_YEARS), consistent_snapshot=False)
    made = {name: _new_signer(name) for name in (*_root_names(root_keys), *ONLINE_ROLES)}
    for name, signer in made.items():
        root.add_key(signer.public_key, _role_of(name))
    root.roles[Root.type].threshold = root_threshold
    metadata = Metadata(root)
    _sign_root(metadata, None, [made[name] for name in _root_names(root_keys)])
    for name, signer in made.items():
        _write_key(folder / f"{name}.pem", signer, passphrase)
    _save_root(folder, metadata)


def rotate_keys(folder: Path, names: list[str]) -> None:
    """Replace keys by new ones in a new root.json, signed by the old and the new root keys.

    A key that is lost can be replaced too; its own file is not needed.

    Raises:
        UsageError: there is no such key, or too few root keys are in the folder; nothing is changed then.
    """
    from tuf.api.metadata import Root

    metadata = newest_root(folder)
    root = metadata.signed
    passphrase = ask_passphrase("Passphrase of the keys: ")
    old = [read_signer(path, passphrase) for path in sorted(folder.glob("root-*.pem"))]
    signers = [signer for signer in old if signer.public_key.keyid in root.roles[Root.type].keyids]
    made = {}
    for name in dict.fromkeys(names):
        made[name] = _replace_key(root, name)
        if _role_of(name) == Root.type:
            signers.append(made[name])
    root.version += 1
    root.expires = in_years(_ROOT_EXPIRES_YEARS)
    _sign_root(metadata, newest_root(folder).signed, signers)
    for name, signer in made.items():
        _write_key(folder / f"{name}.pem.new", signer, passphrase)
    _save_root(folder, metadata)
    for name in made:
        path = folder / f"{name}.pem"
        if path.exists():
            path.replace(folder / f"{name}.pem.until-root-{root.version - 1}")
        (folder / f"{name}.pem.new").replace(path)


def _replace_key(root: "Root", name: str) -> "CryptoSigner":
    role = _role_of(name)
    keyids = [
        keyid
        for keyid in (root.roles[role].keyids if role in root.roles else [])
        if root.keys[keyid].unrecognized_fields.get(_NAME_FIELD) == name
    ]
    if not keyids:
        raise UsageError(
            f"{ROOT_NAME} names no key {name}.",
            hint="Keys are targets, snapshot, timestamp, root-1, root-2 …",
        )
    for keyid in keyids:
        root.revoke_key(keyid, role)
    signer = _new_signer(name)
    root.add_key(signer.public_key, role)
    return signer


def _sign_root(metadata: "Metadata[Root]", before: "Root | None", signers: "Iterable[CryptoSigner]") -> None:
    """Sign a root with all keys at hand, and check it as a clinic would."""
    metadata.signatures.clear()
    for signer in signers:
        metadata.sign(signer, append=True)
    result = metadata.signed.get_root_verification_result(before, metadata.signed_bytes, metadata.signatures)
    if not result.verified:
        raise UsageError(
            "Too few root keys are in the folder to sign the new root.json.",
            hint="Copy the other root-N.pem into it, then try again.",
        )


def _save_root(folder: Path, metadata: "Metadata[Root]") -> None:
    root, data = metadata.signed, metadata.to_bytes()
    (folder / METADATA_FOLDER).mkdir(exist_ok=True)
    write_atomically(folder / METADATA_FOLDER / f"{root.version}.{ROOT_NAME}", data)
    write_atomically(folder / ROOT_NAME, data)
    print(f"{folder / ROOT_NAME} is root {root.version}, valid until {root.expires:%Y-%m-%d}.")
    print(f"Fingerprint: {fingerprint(data)}")


def _root_names(count: int) -> list[str]:
    return [f"root-{number}" for number in range(1, count + 1)]


def _role_of(name: str) -> str:
    return "root" if name.startswith("root-") else name


def newest_root(folder: Path) -> "Metadata[Root]":
    from tuf.api.metadata import Metadata, Root

    if not (folder / ROOT_NAME).is_file():
        raise UsageError(
            f"There is no {ROOT_NAME} in {folder}.", hint="Make keys first: publish_update.py keys"
        )
    return Metadata[Root].from_file(str(folder / ROOT_NAME))


def _new_signer(name: str) -> "CryptoSigner":
    from securesystemslib.signer import CryptoSigner

    signer = CryptoSigner.generate_ed25519()
    signer.public_key.unrecognized_fields[_NAME_FIELD] = name
    return signer


def _write_key(path: Path, signer: "CryptoSigner", passphrase: bytes) -> None:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(signer.private_bytes, None)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase),
    )
    # Never on the disk for others to read, not for a moment.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
        file.flush()
        fsync_file(file.fileno())


def _private_key(path: Path, passphrase: bytes) -> Any:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        return load_pem_private_key(path.read_bytes(), passphrase)
    except FileNotFoundError as error:
        raise UsageError(
            f"There is no key {path}.", hint="Name the folder that publish_update.py keys made."
        ) from error
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path} cannot be opened with this passphrase, or is no key.") from error


def read_signer(path: Path, passphrase: bytes) -> "CryptoSigner":
    from securesystemslib.signer import CryptoSigner

    return CryptoSigner(_private_key(path, passphrase))


def _new_passphrase() -> bytes:
    passphrase = ask_passphrase("New passphrase for the keys: ")
    if len(passphrase) < _SHORTEST_PASSPHRASE:
        raise UsageError(
            f"The passphrase has fewer than {_SHORTEST_PASSPHRASE} letters.", hint="Take five random words."
        )
    if PASSPHRASE_VARIABLE not in os.environ and ask_passphrase("Once more: ") != passphrase:
        raise UsageError("The two passphrases differ.")
    return passphrase


def ask_passphrase(question: str) -> bytes:
    """Return the passphrase from its environment variable, or from the terminal.

    Raises:
        UsageError: there is neither.
    """
    given = os.environ.get(PASSPHRASE_VARIABLE)
    hint = f"Set {PASSPHRASE_VARIABLE}, or start this in a terminal."
    return (given or ask_password(question, hint=hint)).encode()


def now() -> datetime:
    """Return the time to sign with: SOURCE_DATE_EPOCH for the same bytes twice, or the clock's."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    return datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC)


def in_years(years: int) -> datetime:
    start = now()
    return start.replace(year=start.year + years, day=min(start.day, 28), microsecond=0)
