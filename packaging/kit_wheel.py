"""What one wheel file says of itself: name, version, needs, licence texts."""

import re
import zipfile
from dataclasses import dataclass, field
from email.message import Message
from email.parser import BytesParser
from pathlib import Path, PurePosixPath

from kit_lock import normal_name

from edgemed.errors import UsageError
from edgemed.kit_format import KitPlatform

_BLOCK_BYTES = 4096
_TEXT_NAME = re.compile(r"(licen[cs]e|copying|notice|authors)", re.IGNORECASE)
_PLATFORM_TAGS = {
    "linux-x86_64": re.compile(r"(linux|manylinux.*)_x86_64"),
    "linux-aarch64": re.compile(r"(linux|manylinux.*)_aarch64"),
    "windows-x86_64": re.compile(r"win_amd64"),
}


@dataclass(frozen=True)
class Wheel:
    """One wheel file, read."""

    path: Path
    name: str
    version: str
    requires: list[str]
    licence: str
    """As the metadata has it: an SPDX expression, a name, or a classifier; empty if it says nothing."""
    home: str
    installed_bytes: int
    """On a disk with blocks of 4 KiB; Python files count twice: compiling makes about as much again."""
    licence_texts: dict[str, bytes] = field(repr=False)
    """File name, without the folders of the wheel, → content."""
    files: frozenset[str] = field(repr=False)


def read_wheel(path: Path) -> Wheel:
    """Read a wheel.

    Raises:
        UsageError: it is no wheel.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(path, archive)
    except (OSError, zipfile.BadZipFile, KeyError, StopIteration) as error:
        raise UsageError(f"{path.name} is no wheel: {error}", hint="Build or fetch it again.") from error


def runs_on(file: str, platform: KitPlatform) -> bool:
    """Return whether a wheel of this file name is for the platform."""
    tags = file.removesuffix(".whl").split("-")[-1].split(".")
    return any(tag == "any" or _PLATFORM_TAGS[platform].fullmatch(tag) for tag in tags)


def _read(path: Path, archive: zipfile.ZipFile) -> Wheel:
    infos = [info for info in archive.infolist() if not info.is_dir()]
    names = [info.filename for info in infos]
    metadata_name = next(name for name in names if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
    metadata = BytesParser().parsebytes(archive.read(metadata_name))
    folder = metadata_name.removesuffix("METADATA")
    texts = {
        _flat_name(name.removeprefix(folder)): archive.read(name)
        for name in names
        if name.startswith(folder) and _is_licence(name.removeprefix(folder))
    }
    return Wheel(
        path=path,
        name=normal_name(str(metadata["Name"])),
        version=str(metadata["Version"]),
        requires=[str(line) for line in metadata.get_all("Requires-Dist", [])],
        licence=_licence(metadata),
        home=_home(metadata),
        installed_bytes=sum(_on_disk(info) for info in infos),
        licence_texts=texts,
        files=frozenset(names),
    )


def _on_disk(info: zipfile.ZipInfo) -> int:
    blocks_bytes = -(-info.file_size // _BLOCK_BYTES) * _BLOCK_BYTES
    return 2 * blocks_bytes if info.filename.endswith(".py") else blocks_bytes


def _is_licence(name: str) -> bool:
    return name.startswith("licenses/") or ("/" not in name and _TEXT_NAME.match(name) is not None)


def _flat_name(name: str) -> str:
    """Return a file name that every system can hold, for a path within a wheel."""
    parts = PurePosixPath(name.removeprefix("licenses/")).parts
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "__".join(parts)).strip("._-") or "licence"


def _licence(metadata: Message) -> str:
    expression = metadata["License-Expression"] or metadata["License"]
    # Some carry the whole text in the field.
    if expression and "\n" not in str(expression).strip() and len(str(expression)) < 100:
        return str(expression).strip()
    classifiers = [str(line) for line in metadata.get_all("Classifier", []) if line.startswith("License ::")]
    return ", ".join(line.rsplit(" :: ", 1)[-1] for line in classifiers)


def _home(metadata: Message) -> str:
    if metadata["Home-page"]:
        return str(metadata["Home-page"])
    links = dict(str(line).split(", ", 1) for line in metadata.get_all("Project-URL", []) if ", " in line)
    wanted = ("homepage", "repository", "source", "source code", "github")
    found = [url for word in wanted for label, url in links.items() if label.lower() == word]
    return found[0] if found else next(iter(links.values()), "")
