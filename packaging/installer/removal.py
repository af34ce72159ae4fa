"""Go back to the version before, check what is installed, or remove it."""

import contextlib
from pathlib import Path

from installation import LOCK_NAME
from operating_system import data_folder, home_folder, locked
from packs import Worker, check_references
from places import Places, is_our_link_to, make_folder, problem_of, put_away, user_link, write_atomically
from talk import Talk, megabytes

from edgemed.errors import StorageError, UsageError
from edgemed.kit_stick import disk_error

_PROGRAM_DATA = (
    *("models", "reference_packs", "downloads", "updates", "prefix_states", "logs"),
    *("engine_kernels.json", "file_hashes.json"),
)
_USER_DATA = ("history.sqlite3*", "settings.toml*", "locale")


def roll_back() -> str:
    """Use the version before the current one again; return the closing words.

    Raises:
        UsageError: there is none.
        StorageError: it is damaged, or the disk refuses.
    """
    places = Places(data_folder())
    if not places.app.is_dir():
        raise _nothing_here(places)
    with locked(places.app / LOCK_NAME):
        old, now = places.previous(), places.current()
        if old is None or old == now:
            raise UsageError(
                f"There is no version of edgemed to go back to in {places.app}.",
                hint="Only the version before the last installation is kept.",
            )
        problem = problem_of(places.versions / old, read_all=True)
        if problem:
            raise StorageError(
                f"edgemed {old} cannot be used: {problem}", hint="Install it again from its kit."
            )
        # The pointer first: a power cut in between leaves this version in use.
        write_atomically(places.app / "current", f"{old}\n".encode())
        if now is not None:
            write_atomically(places.app / "previous", f"{now}\n".encode())
    return f"edgemed {old} is in use again. Models and conversations stayed as they are."


def check_installed() -> str:
    """Compare every file of the version in use, of libraries and of rule sets; return the closing words.

    Raises:
        UsageError: nothing is installed.
        StorageError: names the file that is damaged or missing.
        PackRefused: the same, of a library or rule set.
    """
    places = Places(data_folder())
    name = places.current()
    if name is None:
        raise _nothing_here(places)
    problem = problem_of(places.versions / name, read_all=True)
    if problem:
        raise StorageError(problem, hint="Install it again from the kit; conversations stay as they are.")
    words = f"edgemed {name} is whole."
    if (places.data / "reference_packs").is_dir():
        with locked(places.app / LOCK_NAME) as lock:
            count = check_references(Worker(places.versions / name, lock))
        words += f" So are the libraries and rule sets: {count}."
    return f"{words} `edgemed models verify` checks the models."


def uninstall(*, also_data: bool, yes: bool) -> str:
    """Remove the program and its models, after a question; conversations only if that is wanted.

    Raises:
        UsageError: nothing is installed, or the question was not answered with yes.
        StorageError: a file cannot be removed; the next run removes the rest.
    """
    places, talk = Places(data_folder()), Talk(1)
    names = [*_PROGRAM_DATA, *(_USER_DATA if also_data else ())]
    # Only what edgemed wrote: EDGEMED_HOME may name a folder that holds other things, too.
    doomed = [path for name in names for path in sorted(places.data.glob(name))]
    if not places.app.is_dir() and not doomed:
        raise _nothing_here(places)
    talk.step(f"Removing edgemed from {places.data}")
    talk.say(f"      the program: {megabytes(_size_of(places.app))}")
    for path in doomed:
        talk.say(f"      {path.name}: {megabytes(_size_of(path))}")
    kept = sorted(path for name in _USER_DATA for path in places.data.glob(name) if path not in doomed)
    if kept:
        talk.say(f"      These stay: {', '.join(path.name for path in kept)}")
    if not yes and not talk.agreed("      Remove it?"):
        raise UsageError("Nothing was removed.")
    make_folder(places.app)
    with locked(places.app / LOCK_NAME):
        _remove(places, doomed)
    _remove_app(places)
    return "edgemed is removed." + (f" Conversations and settings stay in {places.data}." if kept else "")


def _remove(places: Places, doomed: list[Path]) -> None:
    """Remove all but the lock: what starts it first, so that nothing half removed is started."""
    link = user_link(home_folder())
    try:
        if link is not None and is_our_link_to(link, places):
            link.unlink()
        for name in (places.starter.name, "current", "previous", "edgemed.pub"):
            (places.app / name).unlink(missing_ok=True)
        for path in [*doomed, places.versions]:
            if path.exists() or path.is_symlink():
                put_away(path, places.app)
    except OSError as error:
        hint = "Close edgemed where it is open, then start again."
        raise disk_error(error, Path(error.filename or places.app), hint) from error
    places.clean()


def _remove_app(places: Places) -> None:
    """Remove the emptied folders; what someone else put there stays."""
    (places.app / LOCK_NAME).unlink(missing_ok=True)
    for folder in (places.app, places.data):
        with contextlib.suppress(OSError):
            folder.rmdir()


def _nothing_here(places: Places) -> UsageError:
    return UsageError(
        f"No edgemed is installed in {places.data}.",
        hint="If it lies elsewhere, set EDGEMED_HOME to that folder.",
    )


def _size_of(path: Path) -> int:
    if not path.is_dir():
        return path.lstat().st_size if path.exists() else 0
    return sum(one.lstat().st_size for one in path.rglob("*") if not one.is_dir())
