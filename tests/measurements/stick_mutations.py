"""Mutated sticks, interrupted installations: no wrong byte is installed, and the old version always works.

    python -m tests.measurements.stick_mutations --sticks 2000 --kills 200 [--seed 1]

Sticks: a small kit is changed at random (bits, lengths, files that are missing, added, exchanged, renamed,
linked, or from an older kit) and given to the installer, up to the step that installs; some are installed whole.
A stick counts as wrong if it is taken although a file of it is not the signed one, or if the refusal names no
file. Kills: the installation of a second version is ended at a random moment, with all that it started or
alone; then the version in use must start, whichever it is, and the next run must install the second one.
"""

import argparse
import contextlib
import hashlib
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.installer_kits import build_kit, environment, new_key

# isort: split
import command_line

from edgemed.checksums import SIGNATURE_NAME, SUMS_NAME

MODEL = bytes(range(256)) * 64
LIBRARY = b"Drink water that was boiled.\n" * 50


def say(line: str) -> None:
    """Write a line to standard output."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _files(kit: Path) -> list[Path]:
    return sorted(path for path in kit.rglob("*") if path.is_file() and not path.is_symlink())


def flip_bits(kit: Path, rng: random.Random) -> None:
    path = rng.choice(_files(kit))
    data = bytearray(path.read_bytes() or b"x")
    for _ in range(rng.choice((1, 1, 1, 8))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(data))


def zero_block(kit: Path, rng: random.Random) -> None:
    path = rng.choice(_files(kit))
    data = bytearray(path.read_bytes())
    start = rng.randrange(max(1, len(data)))
    data[start : start + 512] = bytes(len(data[start : start + 512]))
    path.write_bytes(bytes(data))


def truncate(kit: Path, rng: random.Random) -> None:
    path = rng.choice(_files(kit))
    os.truncate(path, rng.randrange(max(1, path.stat().st_size)))


def append(kit: Path, rng: random.Random) -> None:
    with rng.choice(_files(kit)).open("ab") as file:
        file.write(rng.randbytes(rng.randrange(1, 600)))


def remove(kit: Path, rng: random.Random) -> None:
    rng.choice(_files(kit)).unlink()


def add(kit: Path, rng: random.Random) -> None:
    near = rng.choice(_files(kit))
    near.with_name(rng.choice((f"{near.stem}.old", f"x{near.name}", near.name.upper() + "x"))).write_bytes(
        b"x"
    )


def exchange(kit: Path, rng: random.Random) -> None:
    one, other = rng.sample(_files(kit), 2)
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def rename(kit: Path, rng: random.Random) -> None:
    path = rng.choice(_files(kit))
    path.rename(path.with_name(rng.choice((path.name.swapcase(), f"{path.name}~", f"a{path.name}"))))


def link(kit: Path, rng: random.Random) -> None:
    path, target = rng.choice(_files(kit)), rng.choice(_files(kit))
    path.unlink()
    path.symlink_to(target)


def folder_for_file(kit: Path, rng: random.Random) -> None:
    path = rng.choice(_files(kit))
    path.unlink()
    path.mkdir()


def edit_list(kit: Path, rng: random.Random) -> None:
    """Change a file and its line in the list, as one who cannot sign would."""
    path = kit / SUMS_NAME
    lines = path.read_text(encoding="ascii").splitlines()
    number = rng.randrange(len(lines))
    sha256, name = lines[number].split(" *")
    changed = (kit / name).read_bytes() + b"\n"
    (kit / name).write_bytes(changed)
    lines[number] = f"{hashlib.sha256(changed).hexdigest()} *{name}"
    path.write_text("\n".join([*lines, ""]), encoding="ascii", newline="\n")
    assert sha256 not in lines[number]


def strip_signature(kit: Path, _rng: random.Random) -> None:
    (kit / SIGNATURE_NAME).unlink()


def mix_with_older(kit: Path, rng: random.Random, older: Path) -> None:
    """Copy files of another, truly signed kit over this one."""
    names = [path.relative_to(older) for path in _files(older)]
    for name in rng.sample(names, rng.randrange(1, len(names))):
        (kit / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(older / name, kit / name)


MUTATIONS: list[Callable[[Path, random.Random], None]] = [
    *(flip_bits, flip_bits, flip_bits, zero_block, truncate, append, remove, add, exchange, rename, link),
    *(folder_for_file, edit_list, strip_signature),
]


def contents(kit: Path) -> dict[str, bytes | str]:
    """Return what a kit holds: bytes of files, and that a link is one."""
    return {
        path.relative_to(kit).as_posix(): "link" if path.is_symlink() else path.read_bytes()
        for path in sorted(kit.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def names_a_file(sentence: str, known: set[str]) -> bool:
    """Return whether the refusal names a file that the sound, older or mutated kit has."""
    return any(name in sentence or Path(name).name in sentence for name in known)


def mutate(kit: Path, older: Path, rng: random.Random) -> str:
    """Change a kit in one to three ways; return how."""
    done = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        # What an earlier change took away, a later one may miss.
        with contextlib.suppress(
            FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, ValueError
        ):
            if rng.random() < 0.08:
                mix_with_older(kit, rng, older)
                done.append("mix_with_older")
            else:
                mutation = rng.choice(MUTATIONS)
                mutation(kit, rng)
                done.append(mutation.__name__)
    return "+".join(done)


def try_sticks(count: int, seed: int, folder: Path) -> int:
    """Mutate and check; return how many went wrong."""
    sound = build_kit(
        folder / "sound", version="2.0", pack=MODEL, library=LIBRARY, piece_bytes=5000, with_pip=False
    )
    older = build_kit(
        folder / "older", version="1.0", pack=MODEL[::-1], library=LIBRARY[::-1], with_pip=False
    )
    right, old = contents(sound), contents(older)
    tally, wrong = Counter[str](), 0
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        stick = folder / "stick"
        shutil.rmtree(stick, ignore_errors=True)
        shutil.copytree(sound, stick)
        how = mutate(stick, older, rng)
        now = contents(stick)
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            code = command_line.main(["--kit", str(stick), "--check", "--key", new_key().public_key.line])
        sentence = said.getvalue()
        is_sound = now in (right, old)
        verdict = "taken, unchanged" if code == 0 and is_sound else "refused, file named"
        if (code == 0) != is_sound or (code and sentence.count("error: ") != 1):
            verdict = "WRONG: taken" if code == 0 else "WRONG: no sentence, or refused unchanged"
        elif code and not names_a_file(sentence, {*now, *right, *old}):
            verdict = "WRONG: no file named"
        wrong += verdict.startswith("WRONG")
        tally[verdict] += 1
        if verdict.startswith("WRONG"):
            say(f"{number} {how}: {verdict}: {sentence[-300:]}")
    say(f"{count} mutated sticks, seed {seed}: {dict(tally)}")
    return wrong


def installer(kit: Path, home: Path) -> list[str]:
    return [sys.executable, "-E", "-s", "-B", str(kit / "install/install.py"), "--yes"]


def install_sticks(count: int, seed: int, folder: Path) -> int:
    """Install mutated sticks whole, by the installer that lies on each; return how many went wrong."""
    sound = build_kit(folder / "whole", version="2.0", pack=MODEL, library=LIBRARY, piece_bytes=5000)
    older = build_kit(folder / "whole-older", version="1.0", pack=MODEL[::-1])
    tally, wrong = Counter[str](), 0
    for number in range(count):
        rng = random.Random(f"whole {seed} {number}")
        stick, home = folder / "stick", folder / "home"
        for path in (stick, home):
            shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(sound, stick)
        home.mkdir()
        how = mutate(stick, older, rng)
        is_sound = contents(stick) in (contents(sound), contents(older))
        done = subprocess.run(installer(stick, home), env=environment(home), capture_output=True, check=False)
        installed = (home / ".local/share/edgemed/app/current").is_file()
        key = "installed" if installed else "refused"
        if installed != is_sound or installed != (done.returncode == 0):
            # The mutation may have hit install.py itself, which nothing checks before it runs.
            key = (
                "WRONG"
                if contents(stick)["install/install.py"] == contents(sound)["install/install.py"]
                else "own"
            )
            wrong += key == "WRONG"
            say(f"whole {number} {how}: {key}: {done.stderr.decode()[-300:]}")
        tally[key] += 1
    say(f"{count} mutated sticks installed whole: {dict(tally)}")
    return wrong


def works(home: Path) -> str:
    """Return the version that starts, nothing if none does."""
    starter = home / ".local/share/edgemed/app/edgemed"
    with contextlib.suppress(OSError):
        done = subprocess.run(
            [str(starter), "ask", "?"], env=environment(home), capture_output=True, check=False
        )
        said = subprocess.run(
            [str(starter), "--version"], env=environment(home), capture_output=True, text=True, check=False
        )
        return said.stdout.strip() if done.returncode == 0 else ""
    return ""


def kill_installations(count: int, seed: int, folder: Path) -> int:
    """Kill the installation of a newer version at random moments; return how often that broke something."""
    first = build_kit(folder / "first", version="1.0", pack=MODEL[::-1])
    second = build_kit(folder / "second", version="2.0", pack=MODEL, library=LIBRARY, piece_bytes=5000)
    template = folder / "template"
    template.mkdir()
    subprocess.run(installer(first, template), env=environment(template), capture_output=True, check=True)
    started_at = time.monotonic()
    rng = random.Random(f"kills {seed}")
    longest_seconds, wrong, killed = 0.0, 0, Counter[str]()
    for number in range(count):
        # A virtual environment cannot be moved: the home is always the same folder.
        _restore(template, folder / "saved", first_time=number == 0)
        moment = rng.uniform(0, longest_seconds or 60.0)
        alone = rng.random() < 0.5
        began = time.monotonic()
        process = subprocess.Popen(
            installer(second, template),
            env=environment(template),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.wait(moment)
            longest_seconds = max(longest_seconds, time.monotonic() - began)
        except subprocess.TimeoutExpired:
            if alone:
                process.kill()
            else:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        killed["alone" if alone else "with its children"] += process.returncode == -signal.SIGKILL
        after_kill = works(template)
        again = _until_free(second, template)
        if not after_kill or again or works(template) != "edgemed 2.0" or _leftovers(template):
            wrong += 1
            say(f"kill {number} at {moment:.2f} s: {after_kill!r} {again} {_leftovers(template)}")
    say(f"{count} runs, killed {dict(killed)}, wrong {wrong}, {time.monotonic() - started_at:.0f} s")
    return wrong


def _restore(home: Path, saved: Path, *, first_time: bool) -> None:
    if first_time:
        shutil.copytree(home, saved, symlinks=True)
        return
    shutil.rmtree(home)
    shutil.copytree(saved, home, symlinks=True)


def _until_free(kit: Path, home: Path) -> str:
    """Install again; what a killed installer started may work on for a moment, and holds the lock."""
    for _ in range(100):
        done = subprocess.run(installer(kit, home), env=environment(home), capture_output=True, check=False)
        if done.returncode != 6:
            break
        time.sleep(0.2)
    return "" if done.returncode == 0 else done.stderr.decode()[-300:]


def _leftovers(home: Path) -> list[str]:
    app = home / ".local/share/edgemed/app"
    return [
        path.name for path in app.iterdir() if path.name.startswith((".incoming", ".outgoing", ".joining"))
    ]


def main() -> int:
    """Run what is asked for; return 1 if anything went wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sticks", type=int, default=2000)
    parser.add_argument("--whole", type=int, default=20, help="mutated sticks that are installed whole")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        wrong = try_sticks(arguments.sticks, arguments.seed, folder)
        wrong += install_sticks(arguments.whole, arguments.seed, folder) if arguments.whole else 0
        wrong += kill_installations(arguments.kills, arguments.seed, folder) if arguments.kills else 0
    say("nothing went wrong" if not wrong else f"{wrong} went wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
