"""Does a kit fit this computer: its kind, its Python, its C library, the room on its disk."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from operating_system import (
    WINDOWS,
    glibc_version,
    kit_platform,
    python_name,
    this_python,
)
from places import Places
from talk import megabytes

from edgemed.errors import EdgemedError, StorageError
from edgemed.kit_stick import Kit

_KINDS = {
    "linux-x86_64": "Linux on a PC (x86-64)",
    "linux-aarch64": "Linux on 64-bit ARM (Raspberry Pi 4 and 5)",
    "windows-x86_64": "Windows on a PC (x86-64)",
}
_SPARE_BYTES = 32 * 2**20
"""Left for conversations and logs."""
_BUILD_FACTOR = 1.1
"""Folders and the ends of blocks, on top of what the files hold."""
_GLIBC_TAG = re.compile(r"manylinux_(\d+)_(\d+)_|manylinux(2014|2010|1)_")
_OLD_TAGS = {"2014": (2, 17), "2010": (2, 12), "1": (2, 5)}


class WrongComputer(EdgemedError):
    """The kit is sound, but not for this computer."""


@dataclass(frozen=True)
class TargetPython:
    """The Python that will run edgemed."""

    version: str
    """Such as 3.11."""
    executable: Path | None
    """None: the one that the kit carries, which is copied."""


def choose_python(kit: Kit) -> TargetPython:
    """Check that the kit is for this kind of computer, and find a Python that its wheels are for.

    Raises:
        WrongComputer: says what the kit needs and what is here.
    """
    listed = kit.listed
    here = kit_platform()
    if listed.platform != here:
        raise WrongComputer(
            f"kit.json says that this kit is for another kind of computer: "
            f"{_KINDS.get(listed.platform, listed.platform)}. This one is {_KINDS.get(here, here)}.",
            hint="Take the kit for this kind of computer.",
        )
    if listed.carried_python:
        return TargetPython(".".join(listed.carried_python.split(".")[:2]), None)
    target = _own_python(listed.pythons) or _other_python(listed.pythons)
    if target is None:
        raise WrongComputer(
            f"This kit needs Python {' or '.join(listed.pythons)}; this computer has {this_python()}.",
            hint="Install one of these, or ask for a kit that serves this one (build_kit.py --python).",
        )
    _check_glibc(kit, target.version)
    return target


def _own_python(wanted: list[str]) -> TargetPython | None:
    usual = sys.implementation.name == "cpython" and not sysconfig.get_config_var("Py_GIL_DISABLED")
    if not usual or this_python() not in wanted:
        return None
    # Not that of a virtual environment, nor a link that a system upgrade will turn to another version.
    base = getattr(sys, "_base_executable", None) or sys.executable
    return TargetPython(this_python(), Path(base if WINDOWS else os.path.realpath(base)))


def _other_python(wanted: list[str]) -> TargetPython | None:
    for version in reversed(wanted):
        found = shutil.which(python_name(version))
        if found is None or WINDOWS:
            continue
        program = "import sys, os; print(sys.version_info[:2], os.path.realpath(sys.executable))"
        command = [found, "-I", "-c", program]
        try:
            done = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL)
        except OSError:
            continue
        said = os.fsdecode(done.stdout).strip()
        expected = f"({version.replace('.', ', ')}) "
        if done.returncode == 0 and said.startswith(expected):
            return TargetPython(version, Path(said.removeprefix(expected)))
    return None


def _check_glibc(kit: Kit, python: str) -> None:
    """Refuse a C library that is older than the wheels; pip would only say that it finds no version."""
    if WINDOWS:
        return
    here = glibc_version()
    for name in kit.wheels_for(python):
        found = [
            (int(match[1]), int(match[2])) if match[1] else _OLD_TAGS[match[3]]
            for match in _GLIBC_TAG.finditer(name)
        ]
        if found and (here is None or here < min(found)):
            needed = ".".join(str(number) for number in min(found))
            have = "another C library" if here is None else f"glibc {here[0]}.{here[1]}"
            raise WrongComputer(
                f"{name} needs glibc {needed} or newer; this system has {have}.",
                hint="Use Debian 12, Ubuntu 22.04, Raspberry Pi OS 12 or newer.",
            )


def check_space(kit: Kit, places: Places, python: str, *, version_is_there: bool) -> None:
    """Refuse before anything is written what would not fit.

    Raises:
        StorageError: says how much is needed and how much is free, or that the folder cannot be written.
    """
    folder = places.data
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise StorageError(
            f"{folder} cannot be written.",
            hint="Set EDGEMED_HOME to a folder on this computer's own disk that you may write to.",
        )
    sizes = kit.listed.sizes
    carried = [name for name in sizes if name.startswith("python/")]
    wheels = sum(sizes[name] for name in [*kit.wheels_for(python), *carried])
    app = 0 if version_is_there else int(kit.listed.installed_bytes * _BUILD_FACTOR) + wheels
    missing = [pack for pack in kit.listed.packs if not (places.data / pack.installed_folder).is_dir()]
    packs = sum(pack.size_bytes - _size_of(places.joining(pack.sha256)) for pack in missing)
    needed, free = app + packs + _SPARE_BYTES, shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"The installation needs {megabytes(needed)}; the disk of {folder} has {megabytes(free)} free.",
            hint="Delete files, or set EDGEMED_HOME to a folder on another disk.",
        )


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*")) if folder.is_dir() else 0
