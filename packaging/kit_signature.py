"""Make minisign keys and signatures, on the build machine only; `edgemed/minisign.py` checks them.

python packaging/kit_signature.py make-key FOLDER        (minisign -G makes keys as well)

Keys are those of minisign, with or without a password. Ed25519 comes from `cryptography`, scrypt from the
standard library; a key with a password takes 1 GiB of memory and some seconds to open, as minisign wants it.
"""

import argparse
import base64
import binascii
import hashlib
import os
import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from passwords import ask_password

from edgemed.errors import EdgemedError, MissingExtra, StorageError, UsageError
from edgemed.minisign import PublicKey

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_OPS_LIMIT, _MEMORY_LIMIT = 33_554_432, 1_073_741_824
"""libsodium's "sensitive" limits, which minisign takes."""
_LEFT_OPEN = "--no-password leaves the key file open."
_KEY_BYTES = 2 + 2 + 2 + 32 + 8 + 8 + 104


@dataclass(frozen=True)
class SecretKey:
    """A minisign secret key, unlocked."""

    key_id: bytes
    seed: bytes = field(repr=False)
    public: bytes

    @property
    def public_key(self) -> PublicKey:
        """Return the key that checks this key's signatures."""
        return PublicKey(self.key_id, self.public)

    @property
    def public_text(self) -> str:
        """Return the content of the `.pub` file."""
        public = self.public_key
        return f"untrusted comment: minisign public key {public.fingerprint}\n{public.line}\n"


def read_secret_key(path: Path, ask: Callable[[str], str] | None = None) -> SecretKey:
    """Read a minisign secret key file; ask for its password if it has one.

    Args:
        ask: takes a question and returns the password. Default: the terminal.

    Raises:
        UsageError: it is no such file, the password is wrong, or it cannot be asked for.
        StorageError: it cannot be read.
    """
    try:
        lines = path.read_bytes().decode("ascii", "replace").splitlines()
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}.") from error
    raw = _decoded(lines)
    if raw is None or raw[:2] != b"Ed" or raw[4:6] != b"B2" or raw[2:4] not in (b"Sc", b"\0\0"):
        raise UsageError(f"{path.name} is no minisign secret key.", hint="minisign -G makes one.")
    secret = raw[54:]
    if raw[2:4] == b"Sc":
        limits = int.from_bytes(raw[38:46], "little"), int.from_bytes(raw[46:54], "little")
        password = (ask or _ask_to_open)(f"Password of {path.name}: ")
        secret = _mask(secret, password, raw[6:38], limits)
    key_id, seed, public, checksum = secret[:8], secret[8:40], secret[40:72], secret[72:]
    # minisign leaves the checksum of a key without a password empty: the two halves tell as much.
    if raw[2:4] == b"Sc" and checksum != _checksum(key_id, seed + public):
        raise UsageError(f"{path.name} does not open with this password.", hint="Try again.")
    if _public_of(seed) != public:
        raise UsageError(f"{path.name} is damaged.", hint="Take the copy that was put away.")
    return SecretKey(key_id, seed, public)


def make_key(folder: Path, password: str) -> SecretKey:
    """Make a new key: `edgemed.key`, to be kept offline, and `edgemed.pub`, for everybody.

    Args:
        password: empty means that the key file is not locked.

    Raises:
        StorageError: the files are there already, or cannot be written.
    """
    seed, key_id, salt = secrets.token_bytes(32), secrets.token_bytes(8), secrets.token_bytes(32)
    public = _public_of(seed)
    made = SecretKey(key_id, seed, public)
    secret = key_id + seed + public + _checksum(key_id, seed + public)
    limits = (_OPS_LIMIT, _MEMORY_LIMIT) if password else (0, 0)
    if password:
        secret = _mask(secret, password, salt, limits)
    head = b"Ed" + (b"Sc" if password else b"\0\0") + b"B2" + (salt if password else bytes(32))
    raw = head + b"".join(limit.to_bytes(8, "little") for limit in limits) + secret
    line = base64.b64encode(raw).decode("ascii")
    _write_new(folder / "edgemed.key", f"untrusted comment: minisign secret key\n{line}\n")
    _write_new(folder / "edgemed.pub", made.public_text)
    return made


def sign(message: bytes, key: SecretKey, trusted_comment: str) -> str:
    """Return the content of a `.minisig` file; the same input gives the same signature."""
    private = _private(key.seed)
    signature = private.sign(hashlib.blake2b(message).digest())
    whole = private.sign(signature + trusted_comment.encode("utf-8"))
    line = base64.b64encode(b"ED" + key.key_id + signature).decode("ascii")
    return (
        f"untrusted comment: signature of an edgemed kit\n{line}\n"
        f"trusted comment: {trusted_comment}\n{base64.b64encode(whole).decode('ascii')}\n"
    )


def _public_of(seed: bytes) -> bytes:
    return _private(seed).public_key().public_bytes_raw()


def _private(seed: bytes) -> "Ed25519PrivateKey":
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ImportError as error:
        raise MissingExtra("cryptography is not installed.", hint="pip install 'edgemed[hq]'") from error
    return Ed25519PrivateKey.from_private_bytes(seed)


def _decoded(lines: list[str]) -> bytes | None:
    try:
        raw = base64.b64decode(lines[1], validate=True) if len(lines) == 2 else b""
    except (binascii.Error, ValueError):
        return None
    return raw if len(raw) == _KEY_BYTES else None


def _checksum(key_id: bytes, key: bytes) -> bytes:
    return hashlib.blake2b(b"Ed" + key_id + key, digest_size=32).digest()


def _mask(secret: bytes, password: str, salt: bytes, limits: tuple[int, int]) -> bytes:
    """Lock or unlock: both are the same exclusive or."""
    cost, parallel = _scrypt_numbers(*limits)
    stream = hashlib.scrypt(
        password.encode("utf-8"),
        salt=salt,
        n=cost,
        r=8,
        p=parallel,
        maxmem=2**31 - 1,
        dklen=len(secret),
    )
    return bytes(left ^ right for left, right in zip(secret, stream, strict=True))


def _scrypt_numbers(ops_limit: int, memory_limit: int) -> tuple[int, int]:
    """Return scrypt's N and p as libsodium's `pickparams` finds them; its r is 8."""
    ops_limit = max(ops_limit, 32768)
    by_memory = ops_limit >= memory_limit // 32
    largest = memory_limit // (8 * 128) if by_memory else ops_limit // (8 * 4)
    power = next((power for power in range(1, 63) if 2**power > largest // 2), 63)
    parallel = min(ops_limit // 4 // 2**power, 0x3FFFFFFF) // 8 if by_memory else 1
    return 2**power, max(parallel, 1)


def _write_new(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Never over an older key; readable by its owner alone where the system knows that.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii", newline="\n") as file:
            file.write(text)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror}.", hint="Name another folder."
        ) from error


def _ask_to_open(question: str) -> str:
    return ask_password(question, hint="Start this in a terminal, or sign with a key without a password.")


def _new_password() -> str:
    password = ask_password("Password of the new key: ", hint=_LEFT_OPEN)
    if not password:
        raise UsageError("The password is empty.", hint=_LEFT_OPEN)
    if ask_password("Once more: ", hint=_LEFT_OPEN) != password:
        raise UsageError("The two passwords differ.", hint="Try again.")
    return password


def main() -> int:
    """Make a key; return the exit code."""
    parser = argparse.ArgumentParser(description="Make the key that signs kits.")
    parser.add_argument("action", choices=["make-key"])
    parser.add_argument("folder", type=Path, help="where edgemed.key and edgemed.pub shall lie")
    parser.add_argument("--no-password", action="store_true", help="leave the key file open")
    arguments = parser.parse_args()
    try:
        made = make_key(arguments.folder, "" if arguments.no_password else _new_password())
    except EdgemedError as error:
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
        return error.exit_code
    print(f"fingerprint {made.public_key.fingerprint}\n{made.public_key.line}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
