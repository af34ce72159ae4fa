"""Bring locked wheels from the package index, through pip; each file's hash is known before.

Called by `lock.py`, which lets pip choose the files, and by `build_kit.py`, which names them.
"""

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from kit_lock import LockedRequirement, LockedWheel

from edgemed.checksums import sha256_of_file
from edgemed.errors import EdgemedError, StorageError
from edgemed.kit_format import KitPlatform

_NEWEST_GLIBC_MINOR = 34
"""Debian 12 has 2.36, Ubuntu 22.04 2.35; the engine wheel is built for 2.34."""


class DownloadFailed(EdgemedError):
    """The package index did not give a wheel."""


def platform_tags(platform: KitPlatform) -> list[str]:
    """Return the tags of wheels that run there, the newest first."""
    if platform == "windows-x86_64":
        return ["win_amd64"]
    machine = platform.removeprefix("linux-")
    numbered = [f"manylinux_2_{minor}_{machine}" for minor in range(_NEWEST_GLIBC_MINOR, 4, -1)]
    return [*numbered, *(f"{old}_{machine}" for old in ("manylinux2014", "manylinux2010", "manylinux1"))]


def download(
    requirements: Iterable[LockedRequirement], platform: KitPlatform, python: str, folder: Path
) -> None:
    """Let pip download the wheels of pinned requirements for another system and Python into a folder.

    Raises:
        DownloadFailed: with pip's last line.
    """
    lines = [
        " ".join([f"{one.name}=={one.version}", *(f"--hash=sha256:{value}" for value in sorted(one.hashes))])
        for one in requirements
    ]
    if not lines:
        return
    folder.mkdir(parents=True, exist_ok=True)
    listed = folder / "wanted.txt"
    listed.write_text("\n".join(lines) + "\n", encoding="utf-8")
    abi = f"cp{python.replace('.', '')}"
    tags = [word for tag in platform_tags(platform) for word in ("--platform", tag)]
    run_pip(
        *("download", "--no-deps", "--require-hashes", "--only-binary", ":all:", "--dest", str(folder)),
        *("--python-version", python, "--implementation", "cp", "--abi", abi, "--abi", "abi3"),
        *("--abi", "none", *tags, "-r", str(listed)),
    )
    listed.unlink()


def fetch(wheels: Iterable[LockedWheel], platform: KitPlatform, folder: Path) -> None:
    """Bring the named wheels into the folder; those already there and sound are kept.

    Raises:
        DownloadFailed: a wheel did not come, or came with other bytes.
    """
    missing = [wheel for wheel in wheels if not is_there(wheel, folder)]
    for python in sorted({wheel.pythons[0] for wheel in missing}):
        wanted = [wheel for wheel in missing if wheel.pythons[0] == python]
        pins = [
            LockedRequirement(wheel.name, wheel.version, "", frozenset({wheel.sha256})) for wheel in wanted
        ]
        download(pins, platform, python, folder)
    for wheel in missing:
        if not is_there(wheel, folder):
            raise DownloadFailed(
                f"{wheel.file} did not come from the package index as it was locked.",
                hint="Write the lock anew with python packaging/lock.py, and look at what changed.",
            )


def is_there(wheel: LockedWheel, folder: Path) -> bool:
    """Return whether the folder holds exactly this wheel.

    Raises:
        StorageError: the disk does not give it.
    """
    path = folder / wheel.file
    try:
        return path.is_file() and sha256_of_file(path) == wheel.sha256
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}.") from error


def run_pip(*arguments: str, environment: dict[str, str] | None = None) -> None:
    """Run this Python's pip; its words are shown only if it fails.

    Raises:
        DownloadFailed: with the line of pip that names the error.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    done = subprocess.run(
        command,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise DownloadFailed(
            f"pip {arguments[0]} failed: {lines[0].removeprefix('ERROR: ') if lines else done.stderr[-300:]}",
            hint="The index must be reachable. --wheels names a folder of wheels that were fetched before.",
        )
