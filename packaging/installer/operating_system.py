"""What differs between operating systems, for the installer: locks, signals, disks, the user's folders.

The installed edgemed has its own, larger module of this name; this one runs where nothing is installed yet.
"""

import contextlib
import errno
import os
import platform
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from edgemed.errors import FileInUse, StorageError, UsageError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

WINDOWS = sys.platform == "win32"
_MACHINES = {"amd64": "x86_64", "x86-64": "x86_64", "arm64": "aarch64"}
_IN_USE = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK)
_SET_HOME = "Set EDGEMED_HOME to a folder on this computer's own disk that you may write to."


@contextlib.contextmanager
def locked(path: Path) -> Iterator[int]:
    """Hold an exclusive lock on a file and give its descriptor; the system frees it with the last process.

    Raises:
        FileInUse: another installation is running, or what it started still is.
        StorageError: the disk cannot lock.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise StorageError(f"{path} cannot be opened: {error.strerror}.", hint=_SET_HOME) from error
    try:
        try:
            if sys.platform == "win32":
                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _IN_USE:
                raise FileInUse(
                    f"Another installation is running: it holds {path}.", hint="Wait until it has finished."
                ) from error
            raise StorageError(f"{path} cannot be locked: {error.strerror}.", hint=_SET_HOME) from error
        yield descriptor
    finally:
        # The file stays: to remove it would let two installations lock two files.
        os.close(descriptor)


def sharing_lock(descriptor: int) -> dict[str, Any]:
    """Return the options of `subprocess.Popen` by which a child holds the lock as long as it lives."""
    return {} if WINDOWS else {"pass_fds": (descriptor,)}


def flush_disks(folder: Path) -> None:
    """Wait until all that was written into a folder is on the disk."""
    if sys.platform == "win32":
        for path in folder.rglob("*"):
            if path.is_file():
                with path.open("r+b") as file:
                    os.fsync(file.fileno())
    else:
        # One call for thousands of files.
        os.sync()


def fsync_folder(folder: Path) -> None:
    """Wait until a folder's entries are on the disk. Windows has no call for it."""
    if sys.platform != "win32":
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
                raise
        finally:
            os.close(descriptor)


def on_termination(handler: Callable[[int], None]) -> None:
    """Call `handler` with the exit code when the system or a closed window asks this process to end."""

    def handle(number: int, _frame: FrameType | None) -> None:
        handler(128 + number)

    if sys.platform == "win32":
        numbers = [signal.SIGTERM, signal.SIGBREAK]
    else:
        numbers = [signal.SIGTERM, signal.SIGHUP]
    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handle)


def refuse_sudo() -> None:
    """Refuse to install as administrator for a user: the files would not be theirs.

    Raises:
        UsageError: started with sudo.
    """
    if sys.platform != "win32" and os.geteuid() == 0 and os.environ.get("SUDO_UID", "0") != "0":
        raise UsageError(
            "The installer was started with sudo, and would install for the administrator, not for you.",
            hint="Start it again without sudo: it needs no administrator.",
        )


def kit_platform() -> str:
    """Return this computer's kind as kits name it, such as linux-x86_64."""
    if sys.maxsize < 2**32:
        # A 32-bit system often runs on a 64-bit kernel, which alone `platform.machine` sees.
        return f"{platform.system().lower()} with 32 bit"
    machine = platform.machine().lower()
    return f"{platform.system().lower()}-{_MACHINES.get(machine, machine)}"


def glibc_version() -> tuple[int, int] | None:
    """Return the version of the C library that this Python runs on; None if it is not glibc."""
    name, version = platform.libc_ver()
    numbers = version.split(".")
    if name != "glibc" or len(numbers) < 2 or not all(number.isdigit() for number in numbers[:2]):
        return None
    return int(numbers[0]), int(numbers[1])


def home_folder() -> Path | None:
    """Return the user's home, None where there is none."""
    # The system's list of users has it where the environment does not.
    text = os.path.expanduser("~")  # noqa: PTH111 - Path.home raises another error for each cause
    home = Path(text)
    return home if text not in ("", "~", os.sep) and home.is_absolute() and home.is_dir() else None


def data_folder() -> Path:
    """Return edgemed's data folder by the rule of `edgemed/paths.py`, as a full path.

    Raises:
        StorageError: there is no home folder to hold it.
    """
    given = os.environ.get("EDGEMED_HOME")
    if given:
        return Path(given).absolute()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA", "")
    else:
        base = os.environ.get("XDG_DATA_HOME", "").strip()
    if base and Path(base).is_absolute():
        return Path(base) / "edgemed"
    home = home_folder()
    if home is None:
        raise StorageError("This user has no home folder that edgemed could be put into.", hint=_SET_HOME)
    return home / ("AppData/Local/edgemed" if WINDOWS else ".local/share/edgemed")


def check_holds_programs(folder: Path) -> None:
    """Refuse a disk on which no program can lie: FAT32 and the like, or one mounted without that right.

    Raises:
        StorageError: says what it cannot.
    """
    if sys.platform == "win32":
        return
    link, script = folder / ".link-test", folder / ".program-test"
    try:
        for leftover in (link, script):
            leftover.unlink(missing_ok=True)
        script.write_text("#!/bin/sh\nexit 0\n", encoding="ascii", newline="\n")
        script.chmod(0o755)
        try:
            link.symlink_to(script.name)
            subprocess.run([str(link)], check=True, stdin=subprocess.DEVNULL)
        except (OSError, subprocess.CalledProcessError) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EROFS):
                raise
            raise StorageError(
                f"The disk of {folder} cannot hold programs: it is FAT32, or mounted without that right.",
                hint=_SET_HOME,
            ) from error
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error.strerror}.", hint=_SET_HOME) from error
    finally:
        for leftover in (link, script):
            with contextlib.suppress(OSError):
                leftover.unlink()


def python_name(version: str) -> str:
    """Return the command of a Python such as 3.11."""
    return "python.exe" if WINDOWS else f"python{version}"


def venv_python(folder: Path) -> Path:
    """Return the Python of a virtual environment."""
    return folder / ("Scripts/python.exe" if WINDOWS else "bin/python")


def venv_scripts(folder: Path) -> Path:
    """Return where a virtual environment has its starters."""
    return folder / ("Scripts" if WINDOWS else "bin")


def this_python() -> str:
    """Return the version of this Python, such as 3.11."""
    return sysconfig.get_python_version()
