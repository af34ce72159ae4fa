"""The list SHA256SUMS of a kit, and which names a kit may hold.

Written by `packaging/build_kit.py`, read by the kit's installer, which carries a copy of this file and runs
where nothing is installed yet; so it imports only `edgemed.errors`, and its sentences are English.

Lines are those of `sha256sum --binary`: 64 hexadecimal digits, a space, `*`, the path with `/`; sorted by
path.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from edgemed.errors import EdgemedError

SUMS_NAME = "SHA256SUMS"
SIGNATURE_NAME = "SHA256SUMS.minisig"

_LINE = re.compile(r"([0-9a-f]{64}) \*(.+)", re.ASCII)
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+@=!-]{0,199}", re.ASCII)
_RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(10))}
_MAX_PATH_LETTERS = 240
_CHUNK_BYTES = 4 * 2**20
_COPY_AGAIN = "Copy the kit again from where it came."


class KitDamaged(EdgemedError):
    """A kit's list of files, or one of its files, is not as it was made."""


def is_safe_path(path: str) -> bool:
    """Return whether every system, and FAT32, holds this relative path as it is spelled, in its folder."""
    return len(path) <= _MAX_PATH_LETTERS and all(_is_safe_part(part) for part in path.split("/"))


def _is_safe_part(part: str) -> bool:
    if not _PART.fullmatch(part) or part.endswith("."):
        return False
    return part.split(".")[0].upper() not in _RESERVED


def same_on_fat(paths: Iterable[str]) -> str | None:
    """Return the first path that a file system without upper and lower case would mix up with another.

    A file that has the name of another's folder counts as well.
    """
    files: set[str] = set()
    folders: dict[str, str] = {}
    for path in paths:
        parts = path.split("/")
        for length in range(1, len(parts)):
            folder = "/".join(parts[:length])
            if folders.setdefault(folder.lower(), folder) != folder or folder.lower() in files:
                return path
        if path.lower() in files or path.lower() in folders:
            return path
        files.add(path.lower())
    return None


def encode_sums(sha256_of_path: Mapping[str, str]) -> bytes:
    """Return the list's bytes, sorted."""
    return "".join(f"{sha256_of_path[path]} *{path}\n" for path in sorted(sha256_of_path)).encode("ascii")


def parse_sums(raw: bytes) -> dict[str, str]:
    """Return path → SHA-256.

    Raises:
        KitDamaged: a line is not as `encode_sums` writes it, or two files would be one on a FAT32 stick.
    """
    try:
        lines = raw.decode("ascii").split("\n")
    except UnicodeDecodeError as error:
        raise KitDamaged(
            f"{SUMS_NAME} is damaged: it holds letters beyond ASCII.", hint=_COPY_AGAIN
        ) from error
    if len(lines) < 2 or lines.pop() != "":
        raise KitDamaged(f"{SUMS_NAME} is cut off: its last line does not end.", hint=_COPY_AGAIN)
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line)
        if match is None or not is_safe_path(match[2]) or match[2] in found:
            raise KitDamaged(f"{SUMS_NAME}, line {number}, is damaged.", hint=_COPY_AGAIN)
        found[match[2]] = match[1]
    if (twin := same_on_fat(found)) is not None:
        raise KitDamaged(f"{SUMS_NAME} names {twin} twice, in upper and lower case.", hint=_COPY_AGAIN)
    return found


def sha256_of_file(path: Path, add_bytes: Callable[[int], None] = lambda _more: None) -> str:
    """Return a file's SHA-256.

    Args:
        add_bytes: told the number of bytes of each chunk, for progress.

    Raises:
        OSError: the disk does not give it.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            add_bytes(len(chunk))
    return digest.hexdigest()
