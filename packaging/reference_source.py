"""A folder with a library or a rule set, as headquarters writes it: the files, and `pack.toml` about them.

    kind = "library"                     # or "rules"
    name = "drugs"
    version = 3                          # higher with every change
    title = "Essential drugs"
    language = "en"
    license = "CC-BY-SA-4.0"
    source = "https://example.org/drugs" # or who wrote it
    edition = "September 2026"
    files = ["dosage.txt", "interactions.jsonl"]

Read by `publish_update.py` and `build_kit.py`, which write `manifest.json` with sizes and SHA-256 of it.
"""

import codecs
import hashlib
import re
import stat
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from edgemed.checksums import is_safe_path, same_on_fat
from edgemed.errors import StorageError, UsageError
from edgemed.manifest import FILE_NAME, ModelFile
from edgemed.reference_manifest import OWN_NAMES, ReferenceManifest, encode_reference_manifest

CARD_NAME = "pack.toml"

_CHUNK_BYTES = 4 * 2**20
_MOST_CARD_BYTES = 2**20
_NO_TEXT = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f]")
"""C0 but tab, line ends and form feed; DEL."""


@dataclass(frozen=True)
class ReferenceSource:
    """A library or a rule set that can be published."""

    folder: Path
    manifest: ReferenceManifest

    @property
    def manifest_bytes(self) -> bytes:
        """Return manifest.json."""
        return encode_reference_manifest(self.manifest)

    @property
    def manifest_sha256(self) -> str:
        """Return the SHA-256 that names this pack: of its manifest, which names all files by theirs."""
        return hashlib.sha256(self.manifest_bytes).hexdigest()


def is_reference_source(folder: Path) -> bool:
    """Return whether the folder holds a library or rule set, not a model."""
    return (folder / CARD_NAME).exists()


def read_reference_source(folder: Path) -> ReferenceSource:
    """Read a folder and every byte in it.

    Raises:
        UsageError: names the field of pack.toml, or the file, that cannot be published, and why.
        StorageError: the disk does not give a file.
    """
    card = _read_card(folder)
    names = _listed(folder, card.pop("files", None))
    files = [_file(folder / name) for name in names]
    try:
        manifest = msgspec.convert({**card, "files": files}, ReferenceManifest)
    except msgspec.ValidationError as error:
        raise _wrong(folder, str(error)) from error
    return ReferenceSource(folder, manifest)


def check_names(names: Iterable[str]) -> None:
    """Refuse packs of one name, of whatever kind.

    Raises:
        UsageError: names it.
    """
    seen: set[str] = set()
    for name in names:
        if name.lower() in seen:
            raise UsageError(
                f"Two packs are named {name}.", hint="Models, libraries and rule sets share their names."
            )
        seen.add(name.lower())


def _read_card(folder: Path) -> dict[str, Any]:
    path = folder / CARD_NAME
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise UsageError(f"{path} is no plain file.", hint="Packs hold no links: copy the file itself.")
        with path.open("rb") as file:
            raw = file.read(_MOST_CARD_BYTES)
    except FileNotFoundError as error:
        raise UsageError(
            f"{folder} has no {CARD_NAME}.", hint="packaging/README.md shows what stands in it."
        ) from error
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        return tomllib.loads(raw.decode("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _wrong(folder, f"it is no TOML: {error}") from error


def _listed(folder: Path, given: object) -> list[str]:
    """Return the names of the files: all that pack.toml lists, and nothing else is there."""
    if not isinstance(given, list) or not given or not all(isinstance(name, str) for name in given):
        raise _wrong(folder, "files must be a list of names, one at least")
    names: list[str] = given
    for name in names:
        if not re.fullmatch(FILE_NAME, name) or not is_safe_path(name):
            raise UsageError(
                f"{folder / CARD_NAME} lists {name!r}, a name that not every stick and system can hold.",
                hint="Take letters, digits, dots and dashes; no folders.",
            )
    if taken := same_on_fat([*OWN_NAMES, *names]):
        raise _wrong(folder, f"{taken} is listed twice, or a name of edgemed's own")
    try:
        present = {path.name for path in folder.iterdir() if not path.name.startswith(".")} - {CARD_NAME}
    except OSError as error:
        raise _unreadable(folder, error) from error
    for name in names:
        if name not in present:
            raise UsageError(
                f"{folder / CARD_NAME} lists {name}, which is not there.", hint="Correct the list."
            )
    if more := sorted(present - set(names)):
        raise UsageError(
            f"{folder / more[0]} is not listed in {CARD_NAME}.", hint="List it, or take it out of the folder."
        )
    return sorted(names)


def _file(path: Path) -> ModelFile:
    """Return a file's size and SHA-256, when every byte of it is text."""
    if not stat.S_ISREG(path.lstat().st_mode):
        raise UsageError(
            f"{path} is a link, a folder or a special file.", hint="A pack holds plain files: copy it itself."
        )
    decoder = codecs.getincrementaldecoder("utf-8")()
    digest, size_bytes, line = hashlib.sha256(), 0, 1
    try:
        with path.open("rb") as file:
            at_end = False
            while not at_end:
                chunk = file.read(_CHUNK_BYTES)
                at_end = not chunk
                digest.update(chunk)
                size_bytes += len(chunk)
                line += _lines_of_text(path, line, decoder, chunk)
    except OSError as error:
        raise _unreadable(path, error) from error
    if size_bytes == 0:
        raise UsageError(f"{path} is empty.", hint=f"Take it out of the folder and of {CARD_NAME}.")
    return ModelFile(name=path.name, size_bytes=size_bytes, sha256=digest.hexdigest())


def _lines_of_text(path: Path, line: int, decoder: codecs.IncrementalDecoder, chunk: bytes) -> int:
    """Return how many lines end in the chunk; refuse what is no text."""
    try:
        text = decoder.decode(chunk, final=not chunk)
    except UnicodeDecodeError as error:
        line += error.object[: error.start].count(b"\n")
        raise UsageError(
            f"{path}, line {line}, is no text in UTF-8.", hint="Save the file as UTF-8; a PDF is no text."
        ) from error
    found = _NO_TEXT.search(text)
    if found:
        line += text.count("\n", 0, found.start())
        raise UsageError(
            f"{path}, line {line}, holds the control character {ord(found[0]):#04x}, so it is no text.",
            hint="A library or rule set is made of text files.",
        )
    return text.count("\n")


def _wrong(folder: Path, problem: str) -> UsageError:
    return UsageError(
        f"{folder / CARD_NAME} is not valid: {problem}", hint="packaging/README.md shows what stands in it."
    )


def _unreadable(path: Path, error: OSError) -> StorageError:
    return StorageError(f"{path} cannot be read: {error.strerror or error}.")
