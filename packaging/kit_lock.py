"""Which wheels a kit holds, to the byte: `requirements.lock` and `wheels.toml`, written by `lock.py`.

`requirements.lock` pins versions for every platform and Python; `wheels.toml` says which files those are.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from edgemed.errors import StorageError, UsageError
from edgemed.kit_format import KitPlatform
from edgemed.manifest import Sha256

FOLDER = Path(__file__).resolve().parent
REQUIREMENTS_LOCK = FOLDER / "requirements.lock"
TOOLS_LOCK = FOLDER / "tools.lock"
WHEELS_FILE = FOLDER / "wheels.toml"

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
"""For which wheels are locked."""
DEFAULT_PYTHONS = ("3.11", "3.13")
"""Of Debian 12 and 13 and of Raspberry Pi OS on either."""
LEFT_OUT = {
    "urllib3": "an HTTP client; tuf names it for its own fetcher, which edgemed never loads",
}
"""Dependencies that a clinic machine does without; the installer installs with --no-deps."""

Role = Literal["app", "pip", "build"]


class LockedWheel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One wheel file."""

    file: str
    size_bytes: Annotated[int, msgspec.Meta(ge=0)]
    sha256: Sha256
    role: Role
    """app: installed at the clinic; pip: what installs it there; build: builds edgemed's own wheel."""
    platforms: list[KitPlatform]
    pythons: list[str]

    @property
    def name(self) -> str:
        """Return the package's name in its one normal spelling."""
        return normal_name(self.file.split("-")[0])

    @property
    def version(self) -> str:
        """Return the package's version."""
        return self.file.split("-")[1]


class _Wheels(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    wheel: list[LockedWheel]


@dataclass(frozen=True)
class LockedRequirement:
    """One line of `requirements.lock`."""

    name: str
    version: str
    marker: str
    """On which systems and Pythons; empty means all."""
    hashes: frozenset[str]
    """SHA-256 of every file of this version that the index had."""

    def applies(self, platform: KitPlatform, python: str) -> bool:
        """Return whether this system and Python need it."""
        from packaging.markers import Marker

        return not self.marker or Marker(self.marker).evaluate(marker_environment(platform, python))


def normal_name(name: str) -> str:
    """Return a package's name as the index spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def marker_environment(platform: KitPlatform, python: str) -> dict[str, str]:
    """Return what the markers of requirements ask for, for the target and not for this computer."""
    windows = platform == "windows-x86_64"
    return {
        "os_name": "nt" if windows else "posix",
        "sys_platform": "win32" if windows else "linux",
        "platform_system": "Windows" if windows else "Linux",
        "platform_machine": "AMD64" if windows else platform.removeprefix("linux-"),
        "platform_release": "",
        "platform_version": "",
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
        "implementation_version": f"{python}.0",
        "python_version": python,
        "python_full_version": f"{python}.0",
        "extra": "",
    }


def read_wheels(path: Path = WHEELS_FILE) -> list[LockedWheel]:
    """Read `wheels.toml`.

    Raises:
        StorageError, UsageError: it cannot be read, or is not as `lock.py` writes it.
    """
    try:
        return msgspec.toml.decode(_read(path), type=_Wheels).wheel
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path.name} is not valid: {error}", hint=_LOCK_AGAIN) from error


def read_lock(path: Path = REQUIREMENTS_LOCK) -> list[LockedRequirement]:
    """Read a lock file.

    Raises:
        StorageError, UsageError: it cannot be read, or a line is not a pinned requirement with hashes.
    """
    text = _read(path).decode("utf-8", "replace").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [_requirement(line, path.name) for line in lines]


_LOCK_AGAIN = "Write it anew: python packaging/lock.py"
_REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;]+)(\s*;\s*(?P<marker>.*?))?(?P<hashes>(\s+--hash=sha256:[0-9a-f]{64})+)\s*"
)


def _requirement(line: str, name: str) -> LockedRequirement:
    match = _REQUIREMENT.fullmatch(line)
    if match is None:
        raise UsageError(f"{name} has a line without version or hash: {line[:80]}", hint=_LOCK_AGAIN)
    hashes = frozenset(word.removeprefix("--hash=sha256:") for word in match["hashes"].split())
    return LockedRequirement(normal_name(match["name"]), match["version"], match["marker"] or "", hashes)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}.", hint=_LOCK_AGAIN) from error
