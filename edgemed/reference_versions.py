"""Which versions of libraries and rule sets are installed and in use, by the names of their folders alone.

Nothing here reads a pack: one that is damaged, or cannot be read just now, is still the one in use, so that
no update forgets it.
"""

import re
from collections.abc import Collection, Iterable

from edgemed.pack_folders import storage_error
from edgemed.paths import reference_packs_folder

_NUMBERED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)-v([1-9][0-9]{0,5})", re.ASCII)


def names_in_use(chosen: Collection[str] | None) -> list[str]:
    """Return which versions are in use, sorted; also one that is damaged or cannot be read just now.

    Args:
        chosen: the setting `references`; None: the newest of each.

    Raises:
        StorageError: the folder of all packs cannot be read.
    """
    return with_newer([], [name for name in installed_names() if chosen is None or name in chosen])


def installed_names() -> list[str]:
    """Return the names of all installed versions, sorted, by their folders alone.

    Raises:
        StorageError: the folder of all packs cannot be read.
    """
    return [name for name in folder_names() if _NUMBERED.fullmatch(name)]


def newest_version(pack: str) -> int:
    """Return the highest installed version of a pack, 0 if there is none.

    Raises:
        StorageError: the folder of all packs cannot be read.
    """
    return max((version for name, version in map(parted, installed_names()) if name == pack), default=0)


def folder_names() -> list[str]:
    """Return the names of all folders among the packs, sorted, whatever they hold.

    Raises:
        StorageError: the folder of all packs cannot be read.
    """
    parent = reference_packs_folder()
    try:
        return sorted(
            path.name for path in parent.iterdir() if path.is_dir() and not path.name.startswith(".")
        )
    except FileNotFoundError:
        return []
    except OSError as error:
        raise storage_error(error, parent) from error


def with_newer(in_use: Iterable[str], coming: Iterable[str]) -> list[str]:
    """Return what is in use when these come: they replace other versions of their name, never newer ones."""
    newest: dict[str, int] = {}
    for name, version in map(parted, (*in_use, *coming)):
        newest[name] = max(version, newest.get(name, 0))
    return sorted(f"{name}-v{version}" for name, version in newest.items())


def parted(name: str) -> tuple[str, int]:
    """Return the name and the version that stand in NAME-vVERSION."""
    match = _NUMBERED.fullmatch(name)
    return (match[1], int(match[2])) if match else (name, 0)
