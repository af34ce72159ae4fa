"""The installer on the clinic's computer: a sound kit works, every other one is refused with the file named."""

import ast
import errno
import hashlib
import io
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

pytest.importorskip("cryptography", reason="signing kits needs the extra hq")

from tests.installer_kits import (
    INSTALLER,
    OWN_MODULES,
    PACK_NAME,
    PLATFORM,
    PYTHON,
    ROOT,
    build_kit,
    copy_kit,
    environment,
    new_key,
    pip_wheel,
    seal,
)
from tests.update_sticks import make_reference

# isort: split
import app_build
import command_line
import fitness
import operating_system
import packs
import places
import talk
from kit_signature import make_key

import edgemed.paths
from edgemed import kit_stick
from edgemed.checksums import SIGNATURE_NAME, SUMS_NAME, KitDamaged, parse_sums
from edgemed.cli import cli
from edgemed.command_line import run_command_line
from edgemed.errors import EdgemedError, StorageError
from edgemed.manifest import encode_manifest, read_manifest

MODEL = bytes(range(256)) * 40
needs_pip = pytest.mark.skipif(pip_wheel() is None, reason="this Python came without a wheel of pip")
needs_posix = pytest.mark.skipif(sys.platform == "win32", reason="links and shells as on Linux")


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a kit whose files are checked, not installed; tests copy it before they change it."""
    return build_kit(
        tmp_path_factory.mktemp("kit") / "edgemed-kit", pack=MODEL, piece_bytes=4000, with_pip=False
    )


@pytest.fixture(scope="module")
def whole_kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a kit that can be installed."""
    return build_kit(tmp_path_factory.mktemp("whole") / "edgemed-kit", pack=MODEL, piece_bytes=4000)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the home of a user whose name is not ASCII and has spaces."""
    folder = tmp_path / "Dr Zoë Ñandú"
    folder.mkdir()
    monkeypatch.delenv("EDGEMED_HOME")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("HOME", str(folder))
    return folder


def run(
    kit: Path, home: Path, *words: str, answer: str = "", **more: str
) -> "subprocess.CompletedProcess[str]":
    """Run the kit's own installer as a fresh user would."""
    return subprocess.run(
        ["sh", str(kit / "install.sh"), *words],
        env=environment(home, EDGEMED_PYTHON=sys.executable, **more),
        input=answer,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def app(home: Path) -> Path:
    return home / ".local/share/edgemed/app"


# A whole installation.


@needs_pip
@needs_posix
def test_a_fresh_user_has_a_model_that_answers_and_the_stick_stays_as_it_was(
    whole_kit: Path, home: Path
) -> None:
    before = snapshot(whole_kit)
    done = run(whole_kit, home, "--yes")
    assert (done.returncode, done.stdout.count("works")) == (0, 1), done.stderr
    assert snapshot(whole_kit) == before
    assert "Start it with: edgemed\n" in done.stdout
    # The model's escape sequence was made harmless.
    assert "A lack of red cells" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert new_key().public_key.fingerprint in done.stderr
    data = app(home).parent
    assert (data / "models" / PACK_NAME / "model.gguf").read_bytes() == MODEL
    assert (data / "updates/metadata/root.json").is_file()
    assert PACK_NAME in (data / "settings.toml").read_text(encoding="utf-8")
    name = (app(home) / "current").read_text(encoding="utf-8")
    assert name.startswith("1.0-")
    assert {path.name for path in app(home).iterdir()} == {
        *(".lock", "current", "edgemed", "edgemed.pub", "versions"),
    }
    said = subprocess.run(
        [str(home / ".local/bin/edgemed"), "--version"], capture_output=True, text=True, check=True
    )
    assert said.stdout == "edgemed 1.0\n"


@needs_pip
@needs_posix
def test_a_new_version_stands_beside_the_old_one_until_it_answers(
    whole_kit: Path, home: Path, tmp_path: Path
) -> None:
    assert run(whole_kit, home, "--yes").returncode == 0
    old = (app(home) / "current").read_text(encoding="utf-8")
    newer = build_kit(tmp_path / "newer", version="2.0", pack=MODEL[::-1])
    settings = app(home).parent / "settings.toml"
    chosen = settings.read_text(encoding="utf-8")
    # It does not answer: the old one stays.
    mute = run(newer, home, EDGEMED_FAKE="mute 2.0")
    assert (mute.returncode, (app(home) / "current").read_text(encoding="utf-8")) == (4, old), mute.stderr
    assert "The engine died" in mute.stderr
    assert f"edgemed {old.strip()} stays in use" in mute.stderr
    assert settings.read_text(encoding="utf-8") == chosen
    # It answers: no question is asked, for the key is known.
    done = run(newer, home)
    assert done.returncode == 0, done.stderr
    assert "installed already, and whole" in done.stderr
    # The model of the same name is another one: both stay, and the newer is used.
    assert len(list((app(home).parent / "models").iterdir())) == 2
    assert f"{PACK_NAME}-{hashlib.sha256(MODEL[::-1]).hexdigest()[:8]}" in settings.read_text(
        encoding="utf-8"
    )
    starter = [str(home / ".local/bin/edgemed"), "--version"]
    assert subprocess.run(starter, capture_output=True, text=True, check=True).stdout == "edgemed 2.0\n"
    assert run(newer, home, "--rollback").returncode == 0
    assert subprocess.run(starter, capture_output=True, text=True, check=True).stdout == "edgemed 1.0\n"
    assert run(newer, home, "--rollback").returncode == 0
    assert subprocess.run(starter, capture_output=True, text=True, check=True).stdout == "edgemed 2.0\n"


@needs_pip
@needs_posix
def test_a_damaged_installation_is_named_and_the_kit_repairs_it(whole_kit: Path, home: Path) -> None:
    assert run(whole_kit, home, "--yes").returncode == 0
    assert run(whole_kit, home, "--check", "--installed").returncode == 0
    version = app(home) / "versions" / (app(home) / "current").read_text(encoding="utf-8").strip()
    victim = next(version.rglob("edgemed/cli.py"))
    victim.write_text("broken", encoding="utf-8")
    found = run(whole_kit, home, "--check", "--installed")
    assert (found.returncode, str(victim) in found.stderr) == (6, True)
    assert run(whole_kit, home).returncode == 0
    assert run(whole_kit, home, "--check", "--installed").returncode == 0
    # The damaged one kept its name until the new one answered: at no moment was there nothing in its place.
    assert (app(home) / "current").read_text(encoding="utf-8").strip() == f"{version.name}.2"


@needs_pip
@needs_posix
def test_a_library_of_the_kit_is_installed_checked_and_removed(home: Path, tmp_path: Path) -> None:
    kit = build_kit(tmp_path / "kit", library=b"Drink water.\n", changes={"libraries": ["START-HERE.txt"]})
    done = run(kit, home, "--yes")
    assert done.returncode == 0, done.stderr
    assert (
        "[4/6] Installing the models and libraries on the stick: 1\n      library guides version 3,"
        in done.stderr
    )
    assert "are for people to read; they stay there" in done.stdout
    data = app(home).parent
    passages = data / "reference_packs/guides-v3/passages.txt"
    assert passages.read_bytes() == b"Drink water.\n"
    assert "references = ['guides-v3']" in (data / "settings.toml").read_text(encoding="utf-8")
    checked = run(kit, home, "--check", "--installed")
    assert (checked.returncode, "So are the libraries and rule sets: 1." in checked.stdout) == (0, True)
    passages.write_bytes(b"Drink mercury.\n")
    checked = run(kit, home, "--check", "--installed")
    assert (checked.returncode, f"{passages} is damaged" in checked.stderr) == (3, True)
    # The stick's own files are checked as all others.
    _flip(kit / "packs/guides/passages.txt")
    refused = run(kit, home)
    assert "packs/guides/passages.txt is damaged" in refused.stderr
    assert run(kit, home, "--uninstall", "--yes").returncode == 0
    assert {path.name for path in data.iterdir()} == {"settings.toml"}


@needs_pip
@needs_posix
def test_a_wheel_that_the_locked_list_does_not_know_is_not_installed(home: Path, tmp_path: Path) -> None:
    lock = f"edgemed==1.0 --hash=sha256:{'0' * 64}\n".encode()
    done = run(build_kit(tmp_path / "kit", more={"wheels/requirements.lock": lock}), home, "--yes")
    assert (done.returncode, "pip could not install edgemed" in done.stderr) == (1, True)
    assert [path.name for path in app(home).iterdir()] == [".lock"]


@needs_pip
@needs_posix
def test_uninstalling_leaves_conversations_and_what_others_put_there(
    whole_kit: Path, home: Path, tmp_path: Path
) -> None:
    # The worst place for a data folder: one that holds other things.
    own = {"EDGEMED_HOME": str(home)}
    (home / "letters.txt").write_text("mine", encoding="utf-8")
    assert run(whole_kit, home, "--yes", **own).returncode == 0
    (home / "history.sqlite3").write_bytes(b"talks")
    refused = run(whole_kit, home, "--uninstall", answer="no\n", **own)
    assert (refused.returncode, (home / "app/current").exists()) == (2, True)
    assert run(whole_kit, home, "--uninstall", answer="yes\n", **own).returncode == 0
    left = {path.name for path in home.iterdir()}
    assert left == {".local", "history.sqlite3", "letters.txt", "settings.toml"}
    assert not list((home / ".local/bin").iterdir())
    assert run(whole_kit, home, "--uninstall", "--also-data", "--yes", **own).returncode == 0
    assert {path.name for path in home.iterdir()} == {".local", "letters.txt"}


@needs_pip
@needs_posix
def test_a_terminated_installation_cleans_up_after_itself(whole_kit: Path, home: Path) -> None:
    before = snapshot(whole_kit)
    installer = [sys.executable, str(whole_kit / "install/install.py"), "--yes"]
    process = subprocess.Popen(installer, env=environment(home), stderr=subprocess.PIPE, text=True)
    assert process.stderr
    while "[3/6]" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert (process.returncode, "Ended by the system" in said) == (143, True)
    assert snapshot(whole_kit) == before
    assert [path.name for path in app(home).iterdir()] == [".lock"]


@pytest.mark.slow
@needs_posix
def test_the_real_kit_answers_a_question_without_a_network(home: Path, tmp_path: Path) -> None:
    cached = os.environ.get("EDGEMED_KIT_WHEELS", "")
    engines = (
        sorted(Path(cached).glob(f"llama_cpp_python-*-py3-none-*{platform.machine()}.whl")) if cached else []
    )
    if not engines:
        pytest.skip("EDGEMED_KIT_WHEELS names no folder with the wheels of a kit and an engine wheel")
    from kit_assemble import build_kit as build_real_kit
    from kit_parts import Order

    make_key(tmp_path, "")
    order = Order(
        platform=PLATFORM,
        out=tmp_path / "out",
        engine_wheel=engines[0],
        pythons=[PYTHON],
        models=[small_pack(tmp_path)],
        libraries=[make_reference(tmp_path / "guides", "guides", 3)],
        key=tmp_path / "edgemed.key",
        wheels=Path(cached),
    )
    kit = build_real_kit(order)
    assert kit
    offline = ["unshare", "--net"] if shutil.which("unshare") and os.access("/", os.W_OK) else []
    done = subprocess.run(
        [*offline, "sh", str(kit / "install.sh"), "--yes"],
        env=environment(home, EDGEMED_PYTHON=sys.executable),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "works. The installation took" in done.stdout
    command = [str(home / ".local/bin/edgemed"), "models", "list"]
    listed = subprocess.run(command, env=environment(home), capture_output=True, text=True, check=True).stdout
    assert f"* {PACK_NAME} " in listed
    checked = json.loads(
        subprocess.run(
            [command[0], "doctor", "--json"],
            env=environment(home),
            capture_output=True,
            text=True,
            check=False,
        ).stdout
    )
    found = [check["detail"] for check in checked if check["name"] == "library guides"]
    assert [words[:18] for words in found] == ["version 3, in use:"]
    whole = run(kit, home, "--check", "--installed")
    assert (whole.returncode, "So are the libraries and rule sets: 1." in whole.stdout) == (0, True), (
        whole.stderr
    )
    assert not [path for path in app(home).iterdir() if path.name.startswith((".incoming", ".joining"))]


def small_pack(folder: Path) -> Path:
    """Return a pack of the embedded model's files, under another name."""
    embedded = read_manifest(next((ROOT / "edgemed/data").glob("*/manifest.json")))
    pack = folder / "pack"
    shutil.copytree(ROOT / "edgemed/data" / embedded.name, pack)
    (pack / "manifest.json").write_bytes(encode_manifest(msgspec.structs.replace(embedded, name=PACK_NAME)))
    return pack


# Sticks that are not as they were made.


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def _write(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a wheel with one flipped bit": (
        lambda kit: _flip(kit / "wheels/edgemed-1.0-py3-none-any.whl"),
        "wheels/edgemed-1.0-py3-none-any.whl is damaged",
    ),
    "a piece of a model with one flipped bit": (
        lambda kit: _flip(kit / f"packs/{PACK_NAME}/model.gguf.001"),
        f"packs/{PACK_NAME}/model.gguf.001 is damaged",
    ),
    "a truncated file": (
        lambda kit: _cut(kit / "wheels/requirements.lock"),
        "wheels/requirements.lock is damaged",
    ),
    "a missing file": (lambda kit: (kit / "START-HERE.txt").unlink(), "START-HERE.txt is missing"),
    "a file of another kit": (
        lambda kit: (kit / "wheels/edgemed-0.9-py3-none-any.whl").write_bytes(b"old"),
        "wheels/edgemed-0.9-py3-none-any.whl",
    ),
    "a name that differs in case only": (
        lambda kit: (kit / "wheels/Requirements.lock").write_bytes(b"twin"),
        "wheels/Requirements.lock",
    ),
    "compiled code beside the installer": (
        lambda kit: _write(kit / "install/__pycache__/talk.cpython-311.pyc"),
        "install/__pycache__/talk.cpython-311.pyc",
    ),
    "a changed list": (lambda kit: _flip(kit / SUMS_NAME), f"{SUMS_NAME} is not what was signed"),
    "a truncated list": (lambda kit: _cut(kit / SUMS_NAME), f"{SUMS_NAME} is not what was signed"),
    "a missing list": (lambda kit: (kit / SUMS_NAME).unlink(), f"{SUMS_NAME} is missing"),
    "a changed signature": (lambda kit: _flip(kit / SIGNATURE_NAME), SUMS_NAME),
    "a missing signature": (lambda kit: (kit / SIGNATURE_NAME).unlink(), f"{SIGNATURE_NAME} is missing"),
    "a changed kit.json": (lambda kit: _flip(kit / "kit.json"), "kit.json is damaged"),
    "a missing kit.json": (lambda kit: (kit / "kit.json").unlink(), "kit.json is missing"),
    "a missing key": (lambda kit: (kit / "install/edgemed.pub").unlink(), "install/edgemed.pub is missing"),
    "another key": (
        lambda kit: (kit / "install/edgemed.pub").write_text(new_key("forger").public_text, encoding="ascii"),
        "is signed with the key",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_changed_stick_is_refused_with_the_file_named_and_nothing_is_written(
    fault: str, kit: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, words = FAULTS[fault]
    bad = copy_kit(kit, tmp_path / "stick")
    change(bad)
    assert command_line.main(["--kit", str(bad), "--yes"]) in (1, 2)
    error = capsys.readouterr().err
    assert words in error
    assert error.count("error: ") == error.count("hint: ") == 1
    assert not (home / ".local").exists()


@needs_posix
@pytest.mark.parametrize("name", ["START-HERE.txt", "wheels", "kit.json"])
def test_a_link_on_the_stick_is_refused(
    name: str, kit: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = copy_kit(kit, tmp_path / "stick")
    (bad / name).rename(tmp_path / "elsewhere")
    (bad / name).symlink_to(tmp_path / "elsewhere")
    assert command_line.main(["--kit", str(bad), "--yes"]) == 1
    assert f"{name!r} is a link" in capsys.readouterr().err
    assert not (home / ".local").exists()


@pytest.mark.parametrize(
    "path", ["../../evil.py", "/etc/evil", "wheels/../../evil", "C:/evil", "a\\b", "con.txt"]
)
def test_even_a_signed_list_cannot_name_a_file_outside_the_kit(
    path: str, kit: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = copy_kit(kit, tmp_path / "stick")
    seal(bad, {**parse_sums((kit / SUMS_NAME).read_bytes()), path: "0" * 64})
    assert command_line.main(["--kit", str(bad), "--yes"]) == 1
    assert f"{SUMS_NAME}, line " in capsys.readouterr().err


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"schema_version": 2}'])
def test_a_signed_but_senseless_kit_json_is_one_sentence(
    raw: bytes, kit: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = copy_kit(kit, tmp_path / "stick")
    (bad / "kit.json").write_bytes(raw)
    sums = parse_sums((kit / SUMS_NAME).read_bytes())
    seal(bad, {**sums, "kit.json": hashlib.sha256(raw).hexdigest()})
    assert command_line.main(["--kit", str(bad), "--yes"]) == 1
    assert "error: kit.json is " in capsys.readouterr().err


def test_a_kit_json_that_knows_other_files_than_the_list_is_refused(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = build_kit(tmp_path / "kit", changes={"files": []}, with_pip=False)
    assert command_line.main(["--kit", str(other), "--yes"]) == 1
    assert "kit.json and SHA256SUMS do not say the same of START-HERE.txt" in capsys.readouterr().err


@needs_posix
def test_names_that_would_play_with_the_terminal_and_folders_without_end_are_refused(
    kit: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = copy_kit(kit, tmp_path / "stick")
    (bad / "a\x1b[2Jb\u202e").write_bytes(b"x")
    assert command_line.main(["--kit", str(bad), "--yes"]) == 1
    error = capsys.readouterr().err
    assert r"a\x1b[2Jb" in error
    assert "\x1b" not in error
    (bad / "/".join("0" * 80)).mkdir(parents=True)
    assert command_line.main(["--kit", str(bad), "--yes"]) == 1
    assert "without end" in capsys.readouterr().err


def test_what_systems_leave_on_sticks_by_themselves_is_no_fault(
    kit: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    touched = copy_kit(kit, tmp_path / "stick")
    (touched / "System Volume Information").mkdir()
    for name in ("System Volume Information/x", ".DS_Store", "wheels/._pip.whl", "packs/Thumbs.db"):
        (touched / name).write_bytes(b"x")
    assert command_line.main(["--kit", str(touched), "--check"]) == 0
    assert "The kit is whole" in capsys.readouterr().out


def test_a_damaged_module_of_the_installer_itself_is_named_before_it_runs(
    kit: Path, home: Path, tmp_path: Path
) -> None:
    bad = copy_kit(kit, tmp_path / "stick")
    (bad / "install/places.py").write_text("raise SystemExit('ran')", encoding="utf-8")
    done = run(bad, home, "--yes")
    assert (done.returncode, "install/places.py is damaged" in done.stderr) == (1, True)


def test_a_stick_that_is_pulled_is_one_sentence_with_the_file(
    kit: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pulled(path: Path, _add: object) -> str:
        if path.name == "model.gguf.002":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return parse_sums((kit / SUMS_NAME).read_bytes())[path.relative_to(kit).as_posix()]

    monkeypatch.setattr(kit_stick, "sha256_of_file", pulled)
    assert command_line.main(["--kit", str(kit), "--yes"]) == 6
    error = capsys.readouterr().err
    assert "model.gguf.002 cannot be read: Input/output error" in error
    assert "Check that the stick is connected" in error
    assert not (home / ".local").exists()


def test_other_bytes_at_the_second_reading_are_refused(kit: Path, tmp_path: Path) -> None:
    changing = copy_kit(kit, tmp_path / "stick")
    opened = kit_stick.open_kit(changing, new_key().public_key, allow_unsigned=False)
    kit_stick.check_whole(opened, lambda _done, _all: None)
    _flip(changing / "wheels/requirements.lock")
    with pytest.raises(EdgemedError, match=r"wheels/requirements\.lock is damaged"):
        kit_stick.copy_checked(opened, "wheels/requirements.lock", tmp_path / "copy")


# Whose kit it is.


def test_an_unsigned_kit_needs_to_be_allowed(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unsigned = build_kit(tmp_path / "kit", signed=False, with_pip=False)
    assert command_line.main(["--kit", str(unsigned), "--yes"]) == 2
    assert "this kit is not signed" in capsys.readouterr().err
    assert command_line.main(["--kit", str(unsigned), "--check", "--allow-unsigned"]) == 0
    assert "NOT SIGNED" in capsys.readouterr().err


def test_the_root_of_an_unsigned_kit_is_not_trusted(tmp_path: Path) -> None:
    asked: list[object] = []

    def ask(order: object, _progress: object) -> dict[str, str]:
        asked.append(order)
        return {"note": ""}

    for signed in (True, False):
        kit = build_kit(tmp_path / str(signed), signed=signed, with_pip=False)
        opened = kit_stick.open_kit(kit, new_key().public_key, allow_unsigned=True)
        packs.trust_root(opened, SimpleNamespace(ask=ask), talk.Talk(1, stream=io.StringIO()))  # type: ignore[arg-type]
        assert len(asked) == 1


def test_sudo_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0, raising=False)
    monkeypatch.setenv("SUDO_UID", "1000")
    assert command_line.main(["--yes"]) == 2
    assert "without sudo" in capsys.readouterr().err


def test_nobody_installs_a_kit_whose_key_was_not_confirmed(
    kit: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for answer, words in (
        ("no\n", "was not confirmed"),
        ("", "was not answered"),
        ("ja\n" * 9, "not confirmed"),
    ):
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        assert command_line.main(["--kit", str(kit)]) == 2
        assert words in capsys.readouterr().err
    assert not (home / ".local").exists()


@pytest.mark.parametrize("as_file", [True, False])
def test_a_key_from_elsewhere_decides(
    as_file: bool, kit: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for key, code in ((new_key(), 0), (new_key("forger"), 1)):
        given = key.public_key.line
        if as_file:
            (tmp_path / "paper.pub").write_text(key.public_text, encoding="ascii")
            given = str(tmp_path / "paper.pub")
        assert command_line.main(["--kit", str(kit), "--check", "--key", given]) == code
    assert new_key("forger").public_key.fingerprint in capsys.readouterr().err
    assert command_line.main(["--kit", str(kit), "--check", "--key", "no key"]) == 1
    assert "is not a minisign public key" in capsys.readouterr().err


def test_after_the_first_kit_only_its_key_is_taken(
    kit: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    app(home).mkdir(parents=True)
    (app(home) / "edgemed.pub").write_text(new_key("first").public_text, encoding="ascii")
    assert command_line.main(["--kit", str(kit), "--yes"]) == 1
    assert new_key("first").public_key.fingerprint in capsys.readouterr().err


# Computers for which the kit is not made.


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"platform": "windows-x86_64"}, "another kind of computer: Windows on a PC"),
        ({"pythons": ["3.99"]}, f"needs Python 3.99; this computer has {PYTHON}"),
    ],
)
def test_a_kit_for_another_computer_is_refused(
    changes: dict[str, object], words: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = build_kit(tmp_path / "kit", changes=changes, with_pip=False)
    assert command_line.main(["--kit", str(other), "--yes"]) == 1
    assert words in capsys.readouterr().err
    assert not (home / ".local").exists()


def test_a_32_bit_system_on_a_64_bit_kernel_is_another_computer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "maxsize", 2**31 - 1)
    assert operating_system.kit_platform() == "linux with 32 bit"


@pytest.mark.parametrize(("glibc", "words"), [((2, 31), "glibc 2.31"), (None, "another C library")])
def test_an_older_c_library_is_refused_before_pip_says_something_else(
    glibc: tuple[int, int] | None,
    words: str,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    engine = "wheels/engine-1.0-py3-none-manylinux_2_34_x86_64.whl"
    kit = build_kit(tmp_path / "kit", more={engine: b"x"}, with_pip=False)
    monkeypatch.setattr(fitness, "glibc_version", lambda: glibc)
    assert command_line.main(["--kit", str(kit), "--yes"]) == 1
    error = capsys.readouterr().err
    assert f"{engine} needs glibc 2.34" in error
    assert words in error


@pytest.mark.parametrize("version", ["3.6", "3.8", "3.10"])
def test_an_older_python_says_what_is_missing(version: str) -> None:
    source = (INSTALLER / "install.py").read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, int(version[2:])))
    python = next(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"), None)
    found = str(python) if python else shutil.which(f"python{version}")
    if found:
        done = subprocess.run(
            [found, str(INSTALLER / "install.py")], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert f"needs Python 3.11 or newer; this is Python {version}." in done.stderr
        assert "Traceback" not in done.stderr


@needs_posix
def test_a_computer_without_python_hears_where_to_get_one(kit: Path, tmp_path: Path) -> None:
    script = (kit / "install.sh").read_text(encoding="utf-8")
    for usual in ("/usr/bin/python3", "/usr/local/bin/python3"):
        script = script.replace(usual, "/nowhere/python3")
    folder = copy_kit(kit, tmp_path / "stick")
    (folder / "install.sh").write_text(script, encoding="utf-8", newline="\n")
    (tmp_path / "bin").mkdir()
    for tool in ("sh", "dirname"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool) or "")
    old = tmp_path / "bin/python3"
    old.write_text("#!/bin/sh\nexit 1\n", encoding="ascii", newline="\n")
    old.chmod(0o755)
    done = subprocess.run(
        [shutil.which("sh") or "", str(folder / "install.sh")],
        env={"PATH": str(tmp_path / "bin")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "needs Python 3.11 or newer" in done.stderr
    assert "carried Python" in done.stderr


# Disks and folders.


def test_too_little_space_is_said_with_both_numbers(
    kit: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(home)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=20_000_000))
    assert command_line.main(["--kit", str(kit), "--yes"]) == 6
    assert "needs 35 MB; the disk of" in (error := capsys.readouterr().err)
    assert "has 20 MB free" in error
    assert not (home / ".local").exists()


def test_a_disk_that_fills_up_leaves_nothing_half_installed(
    kit: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_kit: object, _name: str, target: Path) -> None:
        raise kit_stick.disk_error(OSError(errno.ENOSPC, "No space left on device"), target)

    monkeypatch.setattr(app_build, "copy_checked", full)
    assert command_line.main(["--kit", str(kit), "--yes"]) == 6
    assert "the disk is full" in capsys.readouterr().err
    assert [path.name for path in app(home).iterdir()] == [".lock"]


@pytest.mark.parametrize(
    "said", ["OSError: [Errno 28] No space left on device: 'x'", "There is not enough space on the disk"]
)
def test_a_disk_that_fills_up_under_pip_is_called_full(said: str, tmp_path: Path) -> None:
    error = app_build._failed(
        "pip could not install edgemed", f"Processing x\nERROR: y\n{said}", tmp_path / "x"
    )
    assert (error.exit_code, error.message) == (6, f"the disk is full: {tmp_path} takes no more.")


@needs_posix
def test_a_disk_that_cannot_hold_programs_is_refused(
    kit: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_links(_self: Path, _target: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", no_links)
    assert command_line.main(["--kit", str(kit), "--yes"]) == 6
    assert "cannot hold programs: it is FAT32" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_named(
    kit: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "file").write_bytes(b"")
    monkeypatch.setenv("EDGEMED_HOME", str(home / "file" / "data"))
    assert command_line.main(["--kit", str(kit), "--yes"]) == 6
    assert f"{home / 'file'} cannot be written" in capsys.readouterr().err


@needs_posix
def test_the_second_of_two_installations_is_refused_at_once(
    kit: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    app(home).mkdir(parents=True)
    with operating_system.locked(app(home) / ".lock"):
        assert command_line.main(["--kit", str(kit), "--yes"]) == 6
    assert "Another installation is running" in capsys.readouterr().err


@needs_posix
@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"XDG_DATA_HOME": "/data of/mine"},
        {"XDG_DATA_HOME": ""},
        {"XDG_DATA_HOME": "  "},
        {"EDGEMED_HOME": "/elsewhere"},
        {"EDGEMED_HOME": ""},
    ],
)
def test_the_installer_and_edgemed_agree_where_the_data_folder_is(
    variables: dict[str, str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert operating_system.data_folder() == edgemed.paths.data_folder()


@needs_posix
@pytest.mark.parametrize("value", ["", "/", "/nowhere", "here"])
def test_a_user_without_a_home_folder_hears_of_edgemed_home(
    value: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", value)
    with pytest.raises(StorageError, match="no home folder") as caught:
        operating_system.data_folder()
    assert "EDGEMED_HOME" in caught.value.hint


def test_what_an_interrupted_installation_left_is_removed_but_not_what_it_can_go_on_with(home: Path) -> None:
    place = places.Places(home)
    for name in (".incoming-1/version/lib", ".outgoing-2", ".joining-aa", ".joining-bb", "versions/1.0-x"):
        (place.app / name).mkdir(parents=True)
    (place.app / "current.new").write_bytes(b"")
    place.clean(keep=[place.joining("bb")])
    assert {path.name for path in place.app.iterdir()} == {".joining-bb", "versions"}


def test_a_pointer_never_leads_out_of_the_versions(home: Path) -> None:
    place = places.Places(home)
    place.versions.mkdir(parents=True)
    for text in ("..", "../..", "/", "", "1.0-gone", "x\ny", "\xff"):
        (place.app / "current").write_text(text, encoding="latin-1")
        assert place.current() is None


def test_a_python_that_the_kit_carries_finds_its_packages_beside_it(tmp_path: Path) -> None:
    """Only what can be seen without Windows: the files and the list of module folders."""
    python = {
        "python/python.exe": b"MZ",
        "python/python312.zip": b"PK",
        "python/python312._pth": b"python312.zip",
    }
    kit = build_kit(tmp_path / "kit", more=python, with_pip=False)
    opened = kit_stick.open_kit(kit, new_key().public_key, allow_unsigned=False)
    app_build._copy_carried(opened, tmp_path / "version", "3.12")
    lines = (tmp_path / "version/python/python312._pth").read_text(encoding="utf-8").splitlines()
    assert lines == ["python312.zip", ".", "Lib\\site-packages", "import site"]
    assert places.python_of(tmp_path / "version") == tmp_path / "version/python/python.exe"


def test_the_installer_needs_nothing_that_is_not_on_the_stick() -> None:
    own = {path.stem for path in INSTALLER.glob("*.py")}
    copied = {f"edgemed.{Path(name).stem}" for name in OWN_MODULES}
    # `pack_worker.py` runs under the installed edgemed.
    paths = [path for path in INSTALLER.glob("*.py") if path.name != "pack_worker.py"]
    for path in [*paths, *(ROOT / "edgemed" / name for name in OWN_MODULES)]:
        for name in _imported(path):
            assert name.split(".")[0] in own | sys.stdlib_module_names or name in copied, f"{path}: {name}"


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "edgemed":
            yield from (f"edgemed.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_the_installed_program_checks_a_kit_before_it_travels(
    kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEMED_HOME", str(tmp_path / "home"))

    def run(*words: str) -> tuple[int, str, str]:
        code = run_command_line(cli, "edgemed", ["kit", *words])
        return code, *capsys.readouterr()

    code, out, err = run("check", str(kit))
    assert code == 0 and "The kit is whole" in out and new_key().public_key.fingerprint in out
    assert "proves nothing" in err
    code, out, err = run("check", str(kit), "--key", new_key().public_key.line)
    assert (code, err) == (0, "")
    shown = json.loads(run("show", str(kit), "--json")[1])
    assert shown["version"] and shown["packs"][0]["name"] == PACK_NAME
    damaged = copy_kit(kit, tmp_path / "stick")
    lock = damaged / "wheels/requirements.lock"
    lock.write_bytes(lock.read_bytes().swapcase())
    code, out, err = run("check", str(damaged))
    assert code == KitDamaged.exit_code and "wheels/requirements.lock is damaged" in err
    other = new_key("somebody else").public_key.line
    code, _out, err = run("check", str(kit), "--key", other)
    assert code != 0 and "SHA256SUMS" in err
    code, _out, err = run("show", str(tmp_path / "nowhere"))
    assert code != 0 and err.startswith("error: SHA256SUMS is missing")


def test_only_wheels_that_this_python_can_use_are_copied(tmp_path: Path) -> None:
    wheels = ["a-1-cp311-cp311-linux.whl", "a-1-cp313-cp313-linux.whl", "b-1-cp36-abi3-linux.whl"]
    kit = build_kit(tmp_path / "kit", more={f"wheels/{name}": b"x" for name in wheels}, with_pip=False)
    opened = kit_stick.open_kit(kit, new_key().public_key, allow_unsigned=False)
    used = opened.wheels_for("3.13")
    assert f"wheels/{wheels[0]}" not in used
    assert {f"wheels/{wheels[1]}", f"wheels/{wheels[2]}", "wheels/requirements.lock"} < set(used)


def test_the_windows_starter_has_the_line_ends_of_windows() -> None:
    raw = (ROOT / "packaging/installer/install.cmd").read_bytes()
    assert raw.count(b"\n") == raw.count(b"\r\n") > 10
    assert raw.isascii()
