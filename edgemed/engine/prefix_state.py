"""Saved KV cache of what every conversation begins with: system prompt and template.

Reading 600 tokens again at each start costs seconds on an old laptop; reading their saved state costs
milliseconds. One file a prefix, named by everything that decides its content, so that a changed model,
adapter, template or llama.cpp build simply never finds an old one. The payload's SHA-256 stands before it:
llama.cpp checks nothing itself, and a flipped bit would change answers silently.
"""

import contextlib
import hashlib
import logging
import os
from pathlib import Path

MINIMUM_TOKENS = 32
"""Reading fewer is as fast as loading them."""
KEPT_FILES = 4

_logger = logging.getLogger(__name__)
_DIGEST_BYTES = 32


def state_key(identity: list[str], tokens: list[int]) -> str:
    """Return the name of the state of `tokens` under this model, adapter and build (`identity`)."""
    digest = hashlib.sha256()
    for part in identity:
        digest.update(part.encode() + b"\0")
    digest.update(",".join(map(str, tokens)).encode())
    return digest.hexdigest()


def load_state(folder: Path, key: str) -> bytes | None:
    """Return a saved state, or None; a damaged file is deleted, to be made again."""
    path = folder / f"{key}.state"
    try:
        content = path.read_bytes()
    except OSError:
        return None
    payload = content[_DIGEST_BYTES:]
    if payload and hashlib.sha256(payload).digest() == content[:_DIGEST_BYTES]:
        with contextlib.suppress(OSError):
            os.utime(path)
        return payload
    forget_state(folder, key)
    return None


def save_state(folder: Path, key: str, payload: bytes) -> None:
    """Save a state; a full or read-only disk costs only the next start's time."""
    path = folder / f"{key}.state"
    temporary = folder / f"{key}.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # No fsync: after a power cut the digest tells whether the file is whole.
        with temporary.open("wb") as file:
            file.write(hashlib.sha256(payload).digest())
            file.write(payload)
        temporary.replace(path)
        _remove_oldest(folder)
    except OSError as error:
        _logger.info("prefix state not saved: %s", error.strerror)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def forget_state(folder: Path, key: str) -> None:
    """Delete a state that is damaged or that llama.cpp refuses."""
    with contextlib.suppress(OSError):
        (folder / f"{key}.state").unlink(missing_ok=True)


def _remove_oldest(folder: Path) -> None:
    states = sorted(folder.glob("*.state"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in states[KEPT_FILES:]:
        path.unlink(missing_ok=True)
