"""Check minisign signatures with nothing but the standard library.

Called by the kit's installer, which carries a copy of this file and runs where nothing is installed yet; so
it imports only `edgemed.errors`, and its sentences are English. Making keys and signatures is the build
machine's work (`packaging/kit_signature.py`).

Formats: jedisct1.github.io/minisign, "ED" (over the BLAKE2b-512 of the file) and the older "Ed" (over the
file itself). Ed25519: RFC 8032, section 5.1.7, without cofactor. All numbers here are public, so it need not
run in constant time.
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass
from pathlib import Path

from edgemed.errors import EdgemedError

_UNTRUSTED = "untrusted comment: "
_TRUSTED = "trusted comment: "
_MAX_TEXT_BYTES = 16 * 2**10
_MAX_OLD_BYTES = 64 * 2**20
"""Of a file signed the older way: it must fit into memory."""
_CHUNK_BYTES = 2**20
_COPY_AGAIN = "Copy the kit again from where it came; if that does not help, ask the people who made it."

_FIELD = 2**255 - 19
_ORDER = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, -1, _FIELD) % _FIELD
_ROOT_OF_MINUS_ONE = pow(2, (_FIELD - 1) // 4, _FIELD)
_Point = tuple[int, int, int, int]
"""Extended coordinates X, Y, Z, T with x = X/Z, y = Y/Z, x*y = T/Z."""
_NEUTRAL: _Point = (0, 1, 1, 0)


class SignatureInvalid(EdgemedError):
    """A signature or a public key is damaged, or the file is not what was signed."""


@dataclass(frozen=True)
class PublicKey:
    """A minisign public key."""

    key_id: bytes
    """8 bytes, chosen at random with the key; they only help to find the right key."""
    key: bytes
    """32 bytes, an Ed25519 public key."""

    @property
    def fingerprint(self) -> str:
        """Return the key's id as minisign prints it: 16 hexadecimal digits."""
        return self.key_id[::-1].hex().upper()

    @property
    def line(self) -> str:
        """Return the key as one line, to compare with a printed one."""
        return base64.b64encode(b"Ed" + self.key_id + self.key).decode("ascii")


@dataclass(frozen=True)
class _Signature:
    prehashed: bool
    key_id: bytes
    signature: bytes
    trusted_comment: str
    comment_signature: bytes


def read_public_key(path: Path) -> PublicKey:
    """Read a `.pub` file.

    Raises:
        SignatureInvalid: it cannot be read or is no minisign public key.
    """
    return parse_public_key(_read_text(path), path.name)


def parse_public_key(text: str, name: str) -> PublicKey:
    """Read a public key: the two lines of a `.pub` file, or the second alone.

    Args:
        name: of the file, for the error.

    Raises:
        SignatureInvalid: it is no minisign public key.
    """
    lines = _lines(text)
    if len(lines) == 2 and lines[0].startswith(_UNTRUSTED):
        lines = lines[1:]
    raw = _decoded(lines[0], 42) if len(lines) == 1 else None
    if raw is None or raw[:2] != b"Ed":
        raise SignatureInvalid(f"{name} is not a minisign public key.", hint=_COPY_AGAIN)
    point = _point(raw[10:])
    # A key of small order would accept signatures that nobody made.
    if point is None or _same(_times(8, point), _NEUTRAL):
        raise SignatureInvalid(f"{name} holds no usable Ed25519 key.", hint=_COPY_AGAIN)
    return PublicKey(raw[2:10], raw[10:])


def verify_bytes(message: bytes, signature_text: str, key: PublicKey, *, name: str) -> str:
    """Check that `message` was signed with `key`; return the trusted comment.

    Whoever uses the bytes afterwards should use these, not read the file a second time.

    Args:
        signature_text: the content of the `.minisig` file.
        name: of the signed file, for the error.

    Raises:
        SignatureInvalid: damaged, signed with another key, or the message was changed.
    """
    signature = _parse_signature(signature_text, name)
    signed = hashlib.blake2b(message).digest() if signature.prehashed else message
    return _verified(signed, signature, key, name)


def verify_file(path: Path, signature_path: Path, key: PublicKey) -> str:
    """Check that a file of any size was signed with `key`; return the trusted comment.

    Raises:
        SignatureInvalid: as `verify_bytes`, or a file cannot be read.
    """
    signature = _parse_signature(_read_text(signature_path), path.name)
    try:
        with path.open("rb") as file:
            if signature.prehashed:
                digest = hashlib.blake2b()
                while chunk := file.read(_CHUNK_BYTES):
                    digest.update(chunk)
                signed = digest.digest()
            else:
                signed = file.read(_MAX_OLD_BYTES + 1)
    except OSError as error:
        raise _unreadable(path, error) from error
    if len(signed) > _MAX_OLD_BYTES:
        raise SignatureInvalid(
            f"{path.name} is too large for a signature of the older kind.",
            hint="Let its makers sign it with minisign 0.8 or newer.",
        )
    return _verified(signed, signature, key, path.name)


def verify_ed25519(key: bytes, message: bytes, signature: bytes) -> bool:
    """Return whether this is the signature of the message under a 32-byte Ed25519 public key."""
    if len(key) != 32 or len(signature) != 64:
        return False
    public, commitment = _point(key), _point(signature[:32])
    scalar = int.from_bytes(signature[32:], "little")
    if public is None or commitment is None or scalar >= _ORDER:
        return False
    digest = hashlib.sha512(signature[:32] + key + message).digest()
    challenge = int.from_bytes(digest, "little") % _ORDER
    return _same(_times(scalar, _BASE), _sum(commitment, _times(challenge, public)))


def _verified(signed: bytes, signature: _Signature, key: PublicKey, name: str) -> str:
    if signature.key_id != key.key_id:
        raise SignatureInvalid(
            f"{name} is signed with the key {signature.key_id[::-1].hex().upper()}, "
            f"not with the expected {key.fingerprint}.",
            hint="It comes from someone else, or its makers changed their key. Ask them before you go on.",
        )
    if not verify_ed25519(key.key, signed, signature.signature):
        raise SignatureInvalid(f"{name} is not what was signed: it was changed.", hint=_COPY_AGAIN)
    comment = signature.trusted_comment.encode("utf-8")
    if not verify_ed25519(key.key, signature.signature + comment, signature.comment_signature):
        raise SignatureInvalid(f"The signature of {name} has a changed comment.", hint=_COPY_AGAIN)
    return signature.trusted_comment


# The text format.


def _parse_signature(text: str, name: str) -> _Signature:
    lines = _lines(text)
    damaged = SignatureInvalid(f"The signature of {name} is damaged.", hint=_COPY_AGAIN)
    if len(lines) != 4 or not lines[0].startswith(_UNTRUSTED) or not lines[2].startswith(_TRUSTED):
        raise damaged
    raw, comment_signature = _decoded(lines[1], 74), _decoded(lines[3], 64)
    comment = lines[2].removeprefix(_TRUSTED)
    # It will be shown on a terminal. minisign itself writes tabs.
    if raw is None or comment_signature is None or not comment.replace("\t", "").isprintable():
        raise damaged
    if raw[:2] not in (b"Ed", b"ED"):
        raise SignatureInvalid(
            f"The signature of {name} is of an unknown kind.", hint="A newer edgemed may know it."
        )
    return _Signature(raw[:2] == b"ED", raw[2:10], raw[10:], comment, comment_signature)


def _lines(text: str) -> list[str]:
    # Not splitlines: it also cuts at letters that may stand in a comment.
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def _decoded(line: str, size_bytes: int) -> bytes | None:
    """Return the bytes if this is their one Base64 spelling."""
    try:
        raw = base64.b64decode(line.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        return None
    return raw if len(raw) == size_bytes and base64.b64encode(raw).decode("ascii") == line else None


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = ""
    if len(raw) > _MAX_TEXT_BYTES or not text:
        raise SignatureInvalid(f"{path.name} is damaged: it is no minisign file.", hint=_COPY_AGAIN)
    return text


def _unreadable(path: Path, error: OSError) -> SignatureInvalid:
    return SignatureInvalid(f"{path} cannot be read: {error.strerror or error}.", hint=_COPY_AGAIN)


# The curve: -x² + y² = 1 + d x² y² over the field of 2²⁵⁵ - 19.


def _sum(left: _Point, right: _Point) -> _Point:
    a = (left[1] - left[0]) * (right[1] - right[0]) % _FIELD
    b = (left[1] + left[0]) * (right[1] + right[0]) % _FIELD
    c = 2 * left[3] * right[3] * _D % _FIELD
    d = 2 * left[2] * right[2] % _FIELD
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % _FIELD, g * h % _FIELD, f * g % _FIELD, e * h % _FIELD


def _times(scalar: int, point: _Point) -> _Point:
    total = _NEUTRAL
    while scalar:
        if scalar & 1:
            total = _sum(total, point)
        point = _sum(point, point)
        scalar >>= 1
    return total


def _same(left: _Point, right: _Point) -> bool:
    same_x = (left[0] * right[2] - right[0] * left[2]) % _FIELD == 0
    return same_x and (left[1] * right[2] - right[1] * left[2]) % _FIELD == 0


def _point(encoded: bytes) -> _Point | None:
    """Return the point of its 32 bytes; None if they are not the one encoding of a point."""
    y = int.from_bytes(encoded, "little")
    sign, y = y >> 255, y & (2**255 - 1)
    x = _x_of(y, sign)
    return None if x is None else (x, y, 1, x * y % _FIELD)


def _x_of(y: int, sign: int) -> int | None:
    if y >= _FIELD:
        return None
    square = (y * y - 1) * pow(_D * y * y + 1, -1, _FIELD) % _FIELD
    if square == 0:
        return None if sign else 0
    x = pow(square, (_FIELD + 3) // 8, _FIELD)
    if (x * x - square) % _FIELD:
        x = x * _ROOT_OF_MINUS_ONE % _FIELD
    if (x * x - square) % _FIELD:
        return None
    return _FIELD - x if (x & 1) != sign else x


def _base() -> _Point:
    y = 4 * pow(5, -1, _FIELD) % _FIELD
    x = _x_of(y, 0)
    assert x is not None
    return x, y, 1, x * y % _FIELD


_BASE = _base()
