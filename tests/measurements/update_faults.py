"""Mutated sticks and interrupted updates: does a wrong byte get in, is there ever no model, or half an update?

python -m tests.measurements.update_faults --sticks 2000 --interruptions 200
"""

import argparse
import errno
import hashlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

from edgemed.errors import EdgemedError
from edgemed.models import find_model, install_model, list_models, verify_model
from edgemed.reference_packs import list_packs, packs_in_use, verify_pack
from edgemed.settings import change_settings, read_settings
from edgemed.updates import roll_back, update_from
from tests.update_sticks import Headquarters, environment, make_adapter_pack, make_pack, make_reference

OLD = ("clinic", "words", "guides-v2", "triage-v2")
NEW = ("clinic-v3", "words-v3", "guides-v3", "triage-v3")
"""Names of the model, the adapter, the library and the rule set in use before and after the update."""


class Scene(NamedTuple):
    """A computer that uses a kit's model and adapter, and the sticks of two updates."""

    folder: Path
    home: Path
    older_stick: Path
    """Older than the update that the computer has taken."""
    stick: Path
    """The update that is tried."""
    foreign_stick: Path
    """Of another headquarters, with the same packs."""

    @classmethod
    def make(cls, folder: Path) -> "Scene":
        """Publish three updates; install what the second one holds, and take it."""
        ours, theirs = Headquarters(folder / "ours"), Headquarters(folder / "theirs")
        oldest = make_pack(folder / "oldest", "clinic", seed=5)
        oldest_words = make_adapter_pack(folder / "oldest-words", "words", oldest, seed=6)
        texts = [
            (
                make_reference(folder / f"guides-{version}", "guides", version),
                make_reference(folder / f"triage-{version}", "triage", version, kind="rules"),
            )
            for version in (1, 2, 3)
        ]
        older_stick = ours.publish(folder / "first", oldest, oldest_words, *texts[0])
        old = make_pack(folder / "old", "clinic", seed=1)
        new = make_pack(folder / "new", "clinic", seed=2)
        old_words = make_adapter_pack(folder / "old-words", "words", old, seed=3)
        new_words = make_adapter_pack(folder / "new-words", "words", new, seed=4)
        taken = ours.publish(folder / "second", old, old_words, *texts[1])
        # So that every update reads a root too.
        ours.rotate("timestamp")
        stick = ours.publish(folder / "third", new, new_words, *texts[2])
        foreign = theirs.publish(folder / "foreign", new, new_words, *texts[2])
        home = folder / "home"
        with environment(EDGEMED_HOME=str(home)):
            ours_root = ours.keys / "metadata" / "1.root.json"
            ours.root.write_bytes(ours_root.read_bytes())
            ours.trust()
            install_model(old)
            install_model(old_words)
            change_settings(model="clinic", adapter="words")
            update_from(taken)
        return cls(folder, home, older_stick, stick, foreign)


# Mutated sticks.


class Mutation(NamedTuple):
    """What was done to a stick, and the files of which one should be named."""

    kind: str
    names: list[str]


def mutate(stick: Path, scene: Scene, chance: random.Random) -> Mutation:
    """Change one thing on a stick."""
    files = sorted(path for path in stick.rglob("*") if path.is_file())
    path = chance.choice(files)
    if chance.random() < 0.5:
        # Half of all on the few metadata files: there a clever change would hurt most.
        path = chance.choice([path for path in files if path.parent.name == "metadata"])
    kind = chance.choice(sorted(MUTATIONS))
    names = [path.relative_to(stick).as_posix()]
    other = MUTATIONS[kind](path, stick, scene, chance)
    return Mutation(kind, [*names, *([other] if other else [])])


def _flip(path: Path, _stick: Path, _scene: Scene, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def _truncate(path: Path, _stick: Path, _scene: Scene, chance: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size)])


def _extend(path: Path, _stick: Path, _scene: Scene, chance: random.Random) -> None:
    path.write_bytes(path.read_bytes() + chance.randbytes(chance.randint(1, 2000)))


def _zero_sector(path: Path, _stick: Path, _scene: Scene, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    start = chance.randrange(0, len(data), 512)
    data[start : start + 512] = bytes(len(data[start : start + 512]))
    path.write_bytes(data)


def _remove(path: Path, _stick: Path, _scene: Scene, _chance: random.Random) -> None:
    path.unlink()


def _rename(path: Path, _stick: Path, _scene: Scene, _chance: random.Random) -> None:
    path.rename(path.with_name(f"x{path.name}"))


def _swap(path: Path, stick: Path, _scene: Scene, chance: random.Random) -> str:
    other = chance.choice(sorted(each for each in stick.rglob("*") if each.is_file() and each != path))
    ours, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(ours)
    return other.relative_to(stick).as_posix()


def _link(path: Path, _stick: Path, scene: Scene, _chance: random.Random) -> None:
    path.unlink()
    path.symlink_to(scene.folder / "new" / "pack" / "manifest.json")


def _folder(path: Path, _stick: Path, _scene: Scene, _chance: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _link_of_folder(path: Path, stick: Path, scene: Scene, _chance: random.Random) -> str:
    folder = path.parent
    moved = scene.folder / "moved" / str(time.monotonic_ns())
    moved.parent.mkdir(exist_ok=True)
    folder.rename(moved)
    folder.symlink_to(moved)
    return folder.relative_to(stick).as_posix()


def _older_file(path: Path, stick: Path, scene: Scene, chance: random.Random) -> str:
    name = chance.choice(["timestamp.json", "snapshot.json", "targets.json"])
    shutil.copyfile(scene.older_stick / "metadata" / name, stick / "metadata" / name)
    return f"metadata/{name}"


def _older_stick(path: Path, stick: Path, scene: Scene, _chance: random.Random) -> str:
    shutil.copytree(scene.older_stick, stick, dirs_exist_ok=True)
    (stick / "metadata" / "2.root.json").unlink()
    return "metadata/timestamp.json"


def _foreign_file(path: Path, stick: Path, scene: Scene, _chance: random.Random) -> str | None:
    foreign = scene.foreign_stick / path.relative_to(stick)
    if foreign.exists():
        shutil.copyfile(foreign, path)
    else:
        path.write_bytes(b"{}")
    return None


def _edited(path: Path, stick: Path, _scene: Scene, chance: random.Random) -> str:
    """Change one value of the metadata, as somebody without the keys would."""
    path = chance.choice(sorted((stick / "metadata").glob("*.json")))
    document = json.loads(path.read_bytes())
    places: list[tuple[Any, Any]] = []
    _collect(document["signed"], places)
    holder, key = chance.choice(places)
    value = holder[key]
    choices: list[Any] = [None, [], {}, "../../evil", "2099-01-01T00:00:00Z", -1, 0, 2**70, 1.5, "\ud800"]
    choices += [value + 1] if isinstance(value, int) else [f"{value}x", value[::-1]]
    holder[key] = chance.choice(choices)
    path.write_text(json.dumps(document), encoding="utf-8")
    return path.relative_to(stick).as_posix()


def _collect(value: Any, places: list[tuple[Any, Any]]) -> None:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        if isinstance(inner, (str, int)):
            places.append((value, key))
        _collect(inner, places)


def _deep(path: Path, stick: Path, _scene: Scene, chance: random.Random) -> str:
    path = chance.choice(sorted((stick / "metadata").glob("*.json")))
    path.write_bytes(chance.choice([b"[" * 200_000, b'{"signed":' * 50_000, b"9" * 100_000, b"", b"null"]))
    return path.relative_to(stick).as_posix()


MUTATIONS: dict[str, Callable[[Path, Path, Scene, random.Random], str | None]] = {
    "flipped bit": _flip,
    "truncated": _truncate,
    "extended": _extend,
    "zeroed sector": _zero_sector,
    "removed": _remove,
    "renamed": _rename,
    "two files swapped": _swap,
    "link": _link,
    "folder": _folder,
    "folder is a link": _link_of_folder,
    "older metadata": _older_file,
    "older stick": _older_stick,
    "of another headquarters": _foreign_file,
    "edited without keys": _edited,
    "no metadata at all": _deep,
}


class SticksResult(NamedTuple):
    """What mutated sticks did."""

    tried: int
    refused: int
    harmless: int
    """Taken, and every installed byte is what was signed."""
    wrong_bytes: list[str]
    changed_although_refused: list[str]
    unnamed: list[str]
    """Refusals that name none of the changed files."""
    unplanned: list[str]
    """Anything but one of our errors."""


def try_sticks(scene: Scene, *, count: int, seed: int) -> SticksResult:
    """Mutate the stick, update a fresh copy of the home from it, and look at every byte."""
    chance = random.Random(seed)
    before, after = contents(scene.home), _contents_after(scene)
    refused = harmless = 0
    wrong, changed, unnamed, unplanned = [], [], [], []
    for number in range(count):
        with tempfile.TemporaryDirectory(dir=scene.folder) as name:
            home, stick = Path(name) / "home", Path(name) / "stick"
            shutil.copytree(scene.home, home)
            shutil.copytree(scene.stick, stick)
            mutation = mutate(stick, scene, chance)
            what = f"{number} {mutation}"
            with environment(EDGEMED_HOME=str(home)):
                try:
                    update_from(stick)
                except EdgemedError as error:
                    refused += 1
                    if contents(home) != before:
                        changed.append(what)
                    if not any(each in error.message.replace("\\", "/") for each in mutation.names):
                        unnamed.append(f"{what}: {error.message}")
                except (Exception, RecursionError) as error:  # noqa: BLE001 - what we look for
                    unplanned.append(f"{what}: {error!r}")
                else:
                    now = contents(home)
                    if now == after:
                        harmless += 1
                    else:
                        wrong.append(f"{what}: {sorted(dict(now.items() ^ after.items()))}")
    return SticksResult(count, refused, harmless, wrong, changed, unnamed, unplanned)


def contents(home: Path) -> dict[str, str]:
    """Return the SHA-256 of all that is installed, in use and trusted; unfinished copies do not count."""
    from tuf.api.metadata import Metadata

    found = {}
    for path in sorted(home.rglob("*")):
        name = path.relative_to(home).as_posix()
        ignored = name.startswith("updates/incoming") or path.name in (
            "installed.json",
            ".lock",
            "update.lock",
        )
        if path.is_file() and not ignored:
            data = path.read_bytes()
            if name.startswith("updates/metadata"):
                # What counts is what was signed: a spare signature may be damaged, and python-tuf reads a
                # missing version of the format as its own.
                data = Metadata.from_bytes(data).signed_bytes
            found[name] = hashlib.sha256(data).hexdigest()
    return found


def _contents_after(scene: Scene) -> dict[str, str]:
    with tempfile.TemporaryDirectory(dir=scene.folder) as name:
        home = Path(name) / "home"
        shutil.copytree(scene.home, home)
        with environment(EDGEMED_HOME=str(home)):
            update_from(scene.stick)
        return contents(home)


# Interrupted updates.

_OPERATIONS = ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir", "symlink", "remove", "truncate")


class Faults:
    """Between Python and the system: at one step, kill this process or let the call fail.

    A step is a call that opens, reads, writes, flushes, renames, makes or deletes a file.
    """

    def __init__(self, kind: str, step: int) -> None:
        self.kind, self.step, self.count = kind, step, 0

    def install(self) -> None:
        """Replace the calls; for good, so only in a process that ends."""
        for name in _OPERATIONS:
            setattr(os, name, self._wrapped(getattr(os, name)))
        opened = io.open

        def open_file(file: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
            is_last = self.tick()
            opened_file = opened(file, mode, *rest, **more)
            if is_last:
                os.kill(os.getpid(), signal.SIGKILL)
            return _FaultyFile(opened_file, self)

        io.open = open_file

    def _wrapped(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*given: Any, **more: Any) -> Any:
            is_last = self.tick()
            returned = call(*given, **more)
            if is_last:
                os.kill(os.getpid(), signal.SIGKILL)
            return returned

        return wrapped

    def tick(self) -> bool:
        """Count one step; return whether the process shall die after it, or in the middle of a write."""
        self.count += 1
        if self.count != self.step:
            return False
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "kill after":
            return True
        number = getattr(errno, self.kind)
        raise OSError(number, os.strerror(number))


class _FaultyFile:
    def __init__(self, file: Any, faults: Faults) -> None:
        self._file, self._faults = file, faults

    def read(self, *given: Any) -> Any:
        # The many small reads of a file's header are one place.
        if not given or given[0] is None or not 0 <= given[0] < 4096:
            self._faults.tick()
        return self._file.read(*given)

    def write(self, data: Any) -> Any:
        if self._faults.tick():
            self._file.write(bytes(data)[: len(data) // 2])
            self._file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return self._file.write(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *given: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class InterruptionsResult(NamedTuple):
    """What interruptions did."""

    tried: int
    steps: int
    """Of one update without a fault."""
    ended: dict[str, int]
    """How the interrupted processes ended."""
    old_in_use: int
    new_in_use: int
    bad: list[str]
    """Neither version works, a half one is there, or the next update or rollback failed."""


def interrupt(scene: Scene, *, count: int) -> InterruptionsResult:
    """Interrupt updates at evenly spaced steps, by each kind of fault; then look, update again, and go back."""
    steps = _count_steps(scene)
    kinds = ("kill", "kill after", "EIO", "ENOSPC")
    per_kind = max(1, count // len(kinds))
    chosen = sorted({1 + round(number * (steps - 1) / max(1, per_kind - 1)) for number in range(per_kind)})
    ended: Counter[str] = Counter()
    old = new = 0
    bad = []
    for kind in kinds:
        for step in chosen:
            with tempfile.TemporaryDirectory(dir=scene.folder) as name:
                home = Path(name) / "home"
                shutil.copytree(scene.home, home)
                with environment(EDGEMED_HOME=str(home)):
                    ended[_in_child(scene.stick, Faults(kind, step))] += 1
                    problem, is_new = _inspect(scene.stick)
                if problem:
                    bad.append(f"{kind} at step {step}: {problem}")
                new, old = new + is_new, old + (not is_new)
    return InterruptionsResult(len(kinds) * len(chosen), steps, dict(ended), old, new, bad)


def _in_child(stick: Path, faults: Faults) -> str:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            faults.install()
            update_from(stick)
            code = 0
        except EdgemedError:
            code = 2
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return f"signal {os.WTERMSIG(status)}"
    return {0: "finished", 2: "refused in a sentence"}.get(os.WEXITSTATUS(status), "unplanned error")


def _count_steps(scene: Scene) -> int:
    read_end, write_end = os.pipe()
    with tempfile.TemporaryDirectory(dir=scene.folder) as name:
        home = Path(name) / "home"
        shutil.copytree(scene.home, home)
        with environment(EDGEMED_HOME=str(home)):
            child = os.fork()
            if child == 0:
                faults = Faults("kill", -1)
                faults.install()
                update_from(scene.stick)
                os.write(write_end, str(faults.count).encode())
                os._exit(0)
            os.waitpid(child, 0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as counted:
        return int(counted.read())


def _inspect(stick: Path) -> tuple[str, bool]:
    """Return what is wrong after an interruption, and whether the new version is in use."""
    try:
        in_use = _working_packs()
        if in_use not in (OLD, NEW):
            return f"in use: {in_use}", False
        if damaged := [*list_models().damaged, *list_packs().damaged]:
            return f"damaged: {damaged}", False
        update_from(stick)
        if _working_packs() != NEW:
            return f"after the next update: {_working_packs()}", in_use == NEW
        roll_back()
        if _working_packs() != OLD:
            return f"after going back: {_working_packs()}", in_use == NEW
    except EdgemedError as error:
        return error.message, False
    return "", in_use == NEW


def _working_packs() -> tuple[str, ...]:
    """Return what is in use, every byte read again."""
    settings = read_settings()[0]
    model, adapter = find_model(settings.model), find_model(settings.adapter, "adapter")
    for each in (model, adapter):
        verify_model(each)
    if adapter.manifest.base_sha256 != model.manifest.sha256:
        return model.name, f"{adapter.name} of another model"
    references = packs_in_use()
    for pack in references:
        verify_pack(pack)
    return model.name, adapter.name, *(pack.name for pack in references)


def main() -> None:
    """Run both and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sticks", type=int, default=2000)
    parser.add_argument("--interruptions", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scene = Scene.make(Path(name))
        started = time.monotonic()
        sticks = try_sticks(scene, count=given.sticks, seed=given.seed)
        _say(sticks._asdict(), started)
        started = time.monotonic()
        faults = interrupt(scene, count=given.interruptions)
        _say(faults._asdict(), started)
    failed = [*sticks.wrong_bytes, *sticks.changed_although_refused, *sticks.unnamed, *sticks.unplanned]
    sys.exit(1 if failed or faults.bad or "unplanned error" in faults.ended else 0)


def _say(found: dict[str, Any], started: float) -> None:
    found["seconds"] = round(time.monotonic() - started, 1)
    sys.stdout.write(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
