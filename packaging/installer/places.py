"""Where things lie on the clinic's computer: DATA/app with its versions, and which of them is in use.

DATA/app/versions/VERSION-HASH8/  one installed version: a virtual environment, `start.py`, `installed.json`
DATA/app/current                  one line: the name of the version in use; written last, in one step
DATA/app/previous                 the version before it, for --rollback
DATA/app/edgemed                  the starter (edgemed.cmd on Windows)
DATA/app/edgemed.pub              the key that signed the first kit; later kits must be signed with it
"""

import hashlib
import json
import os
import re
import secrets
import shlex
import shutil
from collections.abc import Container, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from operating_system import WINDOWS, fsync_folder, venv_python

from edgemed.checksums import sha256_of_file
from edgemed.errors import StorageError
from edgemed.kit_stick import disk_error

INCOMING = ".incoming-"
_OUTGOING = ".outgoing-"
_JOINING = ".joining-"
_RECORD = "installed.json"
_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+!-]{0,80}", re.ASCII)
_START_AGAIN = "Install it again from the kit."
_SH = """#!/bin/sh
# Starts the version of edgemed that is in use. Written by the kit's installer.
app={app}
{home}version=
[ -r "$app/current" ] && IFS= read -r version < "$app/current"
if [ -z "$version" ] || [ ! -x "$app/versions/$version/bin/python" ]; then
    echo "error: edgemed is not installed in $app, or its Python is gone." >&2
    echo "hint: Install it again from the kit." >&2
    exit 6
fi
exec "$app/versions/$version/bin/python" -I "$app/versions/$version/start.py" "$@"
"""
_CMD = """@echo off
rem Starts the version of edgemed that is in use. Written by the kit's installer.
setlocal
set "version="
if exist "%~dp0current" set /p version=<"%~dp0current"
{home}if not exist "%~dp0versions\\%version%\\start.py" (
    echo error: edgemed is not installed here. 1>&2
    echo hint: Install it again from the kit. 1>&2
    exit /b 6
)
"%~dp0versions\\%version%\\{python}" -I "%~dp0versions\\%version%\\start.py" %*
"""
_START = '''"""Start edgemed; called by the starter, by its full path."""

import sys

if __name__ == "__main__":
    from edgemed.cli import main

    sys.argv[0] = "edgemed"
    sys.exit(main())
'''


@dataclass(frozen=True)
class Places:
    """The folder DATA/app."""

    data: Path

    @property
    def app(self) -> Path:
        """Return DATA/app."""
        return self.data / "app"

    @property
    def versions(self) -> Path:
        """Return where the versions lie."""
        return self.app / "versions"

    @property
    def trusted_key(self) -> Path:
        """Return the key that later kits must be signed with."""
        return self.app / "edgemed.pub"

    @property
    def starter(self) -> Path:
        """Return what starts edgemed."""
        return self.app / ("edgemed.cmd" if WINDOWS else "edgemed")

    def current(self) -> str | None:
        """Return the name of the version in use."""
        return self._pointer("current")

    def previous(self) -> str | None:
        """Return the name of the version before."""
        return self._pointer("previous")

    def _pointer(self, name: str) -> str | None:
        try:
            text = (self.app / name).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return None
        if not _NAME.fullmatch(text) or not (self.versions / text).is_dir():
            return None
        return text

    def switch(self, name: str) -> None:
        """Use this version from now on; the one that was in use becomes the previous.

        Raises:
            StorageError: the disk does not take it; then the old one stays in use.
        """
        old = self.current()
        if old is not None and old != name and not problem_of(self.versions / old):
            write_atomically(self.app / "previous", f"{old}\n".encode())
        write_atomically(self.app / "current", f"{name}\n".encode())

    def joining(self, sha256: str) -> Path:
        """Return where the pieces of a pack are put together; an interrupted installation goes on there."""
        return self.app / f"{_JOINING}{sha256[:16]}"

    def clean(self, *, keep: Container[Path] = ()) -> None:
        """Delete what interrupted installations left, but for what can be gone on with.

        Raises:
            StorageError: the disk refuses.
        """
        try:
            for path in self.app.iterdir():
                is_left = path.name.startswith((INCOMING, _OUTGOING, _JOINING)) or path.suffix == ".new"
                if is_left and path not in keep:
                    _delete(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise disk_error(error, Path(error.filename or self.app)) from error

    def delete_unused(self) -> None:
        """Delete all versions but the current and the previous one; a failure costs space alone."""
        kept = {self.current(), self.previous()}
        with suppress(OSError):
            for path in [path for path in self.versions.iterdir() if path.name not in kept]:
                put_away(path, self.app)


def python_of(version: Path) -> Path:
    """Return the Python that runs a version: its own copy, or that of its virtual environment."""
    carried = version / "python" / "python.exe"
    return carried if carried.is_file() else venv_python(version)


def put_away(path: Path, app: Path) -> None:
    """Delete a file or folder; its name is gone at once, so that nothing half deleted keeps it."""
    doomed = app / f"{_OUTGOING}{secrets.token_hex(8)}"
    path.rename(doomed)
    _delete(doomed)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def write_atomically(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a file so that its name stands for the old bytes or for the new ones.

    Raises:
        StorageError: the disk does not take it.
    """
    written = path.with_name(f"{path.name}.new")
    try:
        with written.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        written.chmod(mode)
        written.replace(path)
        fsync_folder(path.parent)
    except OSError as error:
        raise disk_error(error, path) from error


def write_record(folder: Path, facts: dict[str, str]) -> None:
    """Write down every file of a new version, so that --check --installed can compare."""
    files = {name: sha256_of_file(folder / name) for name in _files(folder)}
    record = {**facts, "files": dict(sorted(files.items()))}
    (folder / _RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")


def problem_of(folder: Path, *, read_all: bool = False) -> str:
    """Return what is wrong with an installed version, in a sentence; nothing if it is whole.

    Args:
        read_all: hash every file, too; else only see whether it can start.
    """
    try:
        record = json.loads((folder / _RECORD).read_bytes())
        files = dict(record["files"])
        for name, sha256 in files.items() if read_all else [("start.py", files["start.py"])]:
            if sha256_of_file(folder / name) != sha256:
                return f"{folder / name} is damaged."
    except OSError as error:
        return f"{error.filename or folder} cannot be read: {error.strerror}."
    except (ValueError, KeyError, TypeError):
        return f"{folder / _RECORD} is damaged."
    return "" if python_of(folder).is_file() else f"The Python of {folder} is gone."


def _files(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        # Python writes its compiled files anew as it likes; the environment's Python is the system's.
        if path.is_file() and not path.is_symlink() and path.suffix != ".pyc" and path.name != _RECORD:
            yield path.relative_to(folder).as_posix()


def write_start(folder: Path) -> None:
    """Write the file by which a version starts."""
    (folder / "start.py").write_text(_START, encoding="utf-8", newline="\n")


def write_starter(places: Places, *, own_home: bool, version: Path) -> None:
    """Write DATA/app/edgemed.

    Args:
        own_home: the data folder is one that EDGEMED_HOME names, not the user's usual one.

    Raises:
        StorageError: the disk does not take it.
    """
    if WINDOWS:
        home = f'if not defined EDGEMED_HOME set "EDGEMED_HOME={places.data}"\n' if own_home else ""
        python = python_of(version).relative_to(version)
        text = _CMD.format(home=home, python=str(python)).replace("\n", "\r\n")
    else:
        home = ': "${EDGEMED_HOME:=$(dirname "$app")}"\nexport EDGEMED_HOME\n' if own_home else ""
        text = _SH.format(app=shlex.quote(str(places.app)), home=home)
    write_atomically(places.starter, os.fsencode(text), mode=0o755)


def link_for_user(places: Places, home: Path | None) -> Path | None:
    """Put a link where the user's shell finds commands; return it, None if there is none of ours."""
    link = user_link(home)
    if link is None:
        return None
    with suppress(OSError):
        link.parent.mkdir(parents=True, exist_ok=True)
        if is_our_link(link):
            link.unlink()
        link.symlink_to(places.starter)
        return link
    return None


def user_link(home: Path | None) -> Path | None:
    """Return where that link is or would be."""
    return None if WINDOWS or home is None else home / ".local" / "bin" / "edgemed"


def is_our_link(link: Path) -> bool:
    """Return whether this is a link to an edgemed starter, not something that someone else put there."""
    return link.is_symlink() and link.readlink().parts[-2:] == ("app", "edgemed")


def is_our_link_to(link: Path, places: Places) -> bool:
    """Return whether this is the link to this very starter."""
    return link.is_symlink() and link.readlink() == places.starter


def version_name(version: str, python: str, requirements_sha256: str) -> str:
    """Return VERSION-HASH8: the same wheels for the same Python give the same name."""
    return f"{version}-{hashlib.sha256(f'{requirements_sha256} {python}'.encode()).hexdigest()[:8]}"


def make_folder(folder: Path) -> None:
    """Make a folder and those above it.

    Raises:
        StorageError: the disk does not take it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be made: {error.strerror}.",
            hint="Set EDGEMED_HOME to a folder on this computer's own disk that you may write to.",
        ) from error
