"""Build one version of edgemed beside the others: a virtual environment with the kit's wheels in it.

All is made in DATA/app/.incoming-…, checked, flushed to the disk, and gets its name by one rename.
"""

import os
import secrets
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fitness import TargetPython
from operating_system import flush_disks, fsync_folder, sharing_lock, venv_python, venv_scripts
from places import (
    INCOMING,
    Places,
    problem_of,
    put_away,
    python_of,
    version_name,
    write_record,
    write_start,
)
from talk import Talk

from edgemed.checksums import KitDamaged
from edgemed.errors import EdgemedError, StorageError
from edgemed.kit_list import plain
from edgemed.kit_stick import Kit, copy_checked, disk_error

REQUIREMENTS = "wheels/requirements.lock"
_POLL_SECONDS = 1.0
_FULL = ("No space left on device", "not enough space on the disk", "Errno 28]")


class BuildFailed(EdgemedError):
    """Python or pip refused to make the new version."""


def name_of(kit: Kit, python: TargetPython) -> str:
    """Return the name of the version that this kit installs here.

    Raises:
        KitDamaged: the kit has no list of wheels.
    """
    if REQUIREMENTS not in kit.sums:
        raise KitDamaged(f"{REQUIREMENTS} is missing.", hint="Copy the kit again from where it came.")
    return version_name(kit.listed.version, python.version, kit.sums[REQUIREMENTS])


def find_whole(places: Places, name: str) -> str | None:
    """Return the installed version of this name, or its repaired twin, if every byte of it is right."""
    twins = (path.name for path in sorted(places.versions.glob(f"{name}*")))
    return next((twin for twin in twins if not problem_of(places.versions / twin, read_all=True)), None)


def build(kit: Kit, python: TargetPython, places: Places, lock: int, talk: Talk) -> str:
    """Build the kit's version and return its name; it is not in use yet.

    Raises:
        KitDamaged, StorageError: names the file of the stick or of the disk.
        BuildFailed: with the line in which pip or Python says why.
    """
    name = name_of(kit, python)
    incoming = places.app / f"{INCOMING}{secrets.token_hex(8)}"
    version = incoming / "version"
    try:
        _copy_wheels(kit, python.version, incoming)
        pip = next((incoming / "wheels").glob("pip-*.whl"))
        if python.executable is None:
            _copy_carried(kit, version, python.version)
        else:
            _make_environment(python.executable, version, incoming, lock)
        target = ["--target", str(_packages_of_carried(version))] if python.executable is None else []
        _install(version, pip, target, incoming, lock, talk, kit.listed.installed_bytes)
        _drop_scripts(version, carried=python.executable is None)
        write_start(version)
        write_record(version, {"version": kit.listed.version, "python": python.version})
        flush_disks(incoming)
        return _take_name(version, places, name)
    except OSError as error:
        raise disk_error(error, Path(error.filename or incoming)) from error
    finally:
        shutil.rmtree(incoming, ignore_errors=True)


def _copy_wheels(kit: Kit, python: str, incoming: Path) -> None:
    """Copy what pip will read: it never reads the stick."""
    names = kit.wheels_for(python)
    if not any(name.startswith("wheels/pip-") and name.endswith(".whl") for name in names):
        raise KitDamaged("The kit has no pip in its folder wheels.", hint="Copy the kit again.")
    (incoming / "tmp").mkdir(parents=True)
    for name in names:
        copy_checked(kit, name, incoming / name)


def _copy_carried(kit: Kit, version: Path, python: str) -> None:
    for name in kit.sums:
        if name.startswith("python/"):
            copy_checked(kit, name, version / name)
    # The embeddable Python looks for modules nowhere but where this file says.
    digits = python.replace(".", "")
    lines = f"python{digits}.zip\r\n.\r\nLib\\site-packages\r\nimport site\r\n"
    (version / "python" / f"python{digits}._pth").write_text(lines, encoding="utf-8", newline="")


def _packages_of_carried(version: Path) -> Path:
    return version / "python" / "Lib" / "site-packages"


def _make_environment(executable: Path, version: Path, incoming: Path, lock: int) -> None:
    # Without pip: where the system keeps ensurepip in a package of its own, it is often missing.
    command = [str(executable), "-I", "-m", "venv", "--without-pip", str(version)]
    code, said = _run(command, incoming, lock)
    if code or not venv_python(version).exists():
        if "No module named venv" in said:
            raise BuildFailed(
                f"{executable} lacks its module venv.",
                hint="Let IT staff install the system's whole Python (on Debian the package python3-venv).",
            )
        raise _failed("Python could not make a virtual environment", said, incoming)


def _install(
    version: Path, pip: Path, target: list[str], incoming: Path, lock: int, talk: Talk, total_bytes: int
) -> None:
    command = [
        *(str(python_of(version)), "-I", str(pip / "pip"), "--isolated", "install"),
        *("--no-index", "--find-links", str(incoming / "wheels"), "--no-deps", "--require-hashes"),
        *("--only-binary", ":all:", "--no-cache-dir", "--no-input", "--disable-pip-version-check"),
        *("--progress-bar", "off", "--no-color", "--no-warn-script-location", *target),
        *("-r", str(incoming / REQUIREMENTS)),
    ]
    code, said = _run(command, incoming, lock, lambda: talk.progress(_size_of(version), total_bytes))
    if code:
        raise _failed("pip could not install edgemed", said, incoming)


def _run(
    command: list[str], incoming: Path, lock: int, look: Callable[[], None] = lambda: None
) -> tuple[int, str]:
    """Run a program to its end and return its exit code and words; it ends with this process."""
    log = incoming / "log.txt"
    with log.open("wb") as words:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=subprocess.STDOUT,
            env=clean_environment(TMPDIR=str(incoming / "tmp"), TEMP=str(incoming / "tmp")),
            cwd=incoming,
            **sharing_lock(lock),
        )
        try:
            while process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_SECONDS)
                look()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    return process.returncode, log.read_bytes().decode("utf-8", "replace")


def clean_environment(**more: str) -> dict[str, str]:
    """Return this process's environment without what bends Python or pip."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PIP_", "PYTHON", "VIRTUAL_ENV", "__PYVENV"))
    }
    return kept | {"PIP_CONFIG_FILE": os.devnull, "PYTHONNOUSERSITE": "1"} | more


def _failed(what: str, said: str, incoming: Path) -> EdgemedError:
    if any(words in said for words in _FULL):
        return StorageError(
            f"the disk is full: {incoming.parent} takes no more.", hint="Delete files, then start again."
        )
    lines = [line for line in said.splitlines() if line.strip()]
    reasons = [line for line in lines if line.startswith("ERROR")] or lines[-1:]
    reason = plain(reasons[0].removeprefix("ERROR: ")) if reasons else "it said nothing"
    return BuildFailed(
        f"{what}: {reason}", hint="Start again; if it fails again, send this line to your IT staff."
    )


def _size_of(folder: Path) -> int:
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(f"{where}{os.sep}{name}").st_size
            except OSError:
                continue
    return total


def _drop_scripts(version: Path, *, carried: bool) -> None:
    """Delete pip's starters: they name the folder under construction. `start.py` takes their place."""
    if carried:
        shutil.rmtree(_packages_of_carried(version) / "bin", ignore_errors=True)
        return
    for path in venv_scripts(version).iterdir():
        if not path.name.lower().startswith("python"):
            path.unlink()


def _take_name(version: Path, places: Places, name: str) -> str:
    """Give the new version its name; a damaged one that is in use keeps its own."""
    places.versions.mkdir(exist_ok=True)
    for number in range(1, 1000):
        free = name if number == 1 else f"{name}.{number}"
        target = places.versions / free
        if target.exists() and free not in (places.current(), places.previous()):
            put_away(target, places.app)
        if not target.exists():
            version.rename(target)
            fsync_folder(places.versions)
            return free
    raise StorageError(f"{places.versions} is full of damaged versions.", hint="Delete that folder.")
