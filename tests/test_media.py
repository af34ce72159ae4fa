"""Models on sticks: found quickly, without harm, whatever is on the stick."""

import os
import shutil
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from edgemed import machine, media, models, paths
from edgemed.control import Control
from edgemed.machine import Medium
from tests.faces import a_control
from tests.fakes import FakeEngine

EMBEDDED = next(path for path in paths.embedded_models_folder().iterdir() if path.is_dir())


@pytest.fixture
def stick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Medium:
    monkeypatch.setenv("EDGEMED_HOME", str(tmp_path / "data"))
    (tmp_path / "STICK").mkdir()
    medium = Medium(tmp_path / "STICK", "STICK", 10**9)
    monkeypatch.setattr(machine, "mounted_media", lambda: [medium])
    return medium


def a_pack(folder: Path, name: str) -> Path:
    shutil.copytree(EMBEDDED, folder / name)
    manifest = folder / name / "manifest.json"
    text = manifest.read_text(encoding="utf-8").replace(f'"{EMBEDDED.name}"', f'"{name}"')
    manifest.write_text(text, encoding="utf-8")
    return folder / name


def test_packs_and_single_files_are_found_two_folders_deep(stick: Medium) -> None:
    a_pack(stick.path, "one")
    a_pack(stick.path / "kit", "two")
    gguf = next(EMBEDDED.glob("*.gguf"))
    (stick.path / "kit/models").mkdir()
    shutil.copy(gguf, stick.path / "kit/models/loose.gguf")
    a_pack(stick.path / "a/b/c", "too-deep")
    found = media.find_models([stick])
    assert sorted(each.path.name for each in found) == ["loose.gguf", "one", "two"]
    assert all(not each.problem and each.examined and each.examined.size_bytes > 10**6 for each in found)


def test_damaged_ones_are_named_with_their_reason(stick: Medium) -> None:
    pack = a_pack(stick.path, "cut")
    gguf = next(pack.glob("*.gguf"))
    gguf.write_bytes(gguf.read_bytes()[:-1000])
    (stick.path / "page.gguf").write_text("<!doctype html>", encoding="utf-8")
    problems = {each.path.name: each.problem for each in media.find_models([stick])}
    assert set(problems) == {"cut", "page.gguf"}
    assert all(problems.values())


@pytest.mark.skipif(sys.platform == "win32", reason="needs the right to make links")
def test_links_and_hidden_files_are_not_followed(stick: Medium, tmp_path: Path) -> None:
    outside = a_pack(tmp_path / "elsewhere", "outside")
    (stick.path / "link").symlink_to(outside)
    a_pack(stick.path / ".Trash", "deleted")
    assert media.find_models([stick]) == []


def test_a_stick_with_countless_files_takes_no_time(stick: Medium, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "MOST_ENTRIES", 100)
    for number in range(300):
        (stick.path / f"photo{number}.jpg").touch()
    a_pack(stick.path / "zzz", "never-reached")
    assert media.find_models([stick]) == []


def test_a_stick_that_is_pulled_while_it_is_read_is_no_error(
    stick: Medium, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_pack(stick.path, "one")

    def pulled(_path: Path) -> object:
        raise OSError(5, os.strerror(5))

    monkeypatch.setattr(os, "scandir", pulled)
    assert media.find_models([stick]) == []


def test_a_model_on_a_stick_is_offered_and_installed_with_every_byte_checked(stick: Medium) -> None:
    a_pack(stick.path, "clinic-model")
    control: Control = a_control(FakeEngine())
    (offered,) = [choice for choice in control.model_choices() if choice.name == "clinic-model"]
    assert offered.source is not None
    assert offered.medium == "STICK"
    seen: list[int] = []
    control.install(offered, lambda done, _all: seen.append(done))
    assert models.find_model("clinic-model").manifest.size_bytes == seen[-1]
    assert [c.source for c in control.model_choices() if c.name == "clinic-model"] == [None]
    control.chat.close()


def test_a_medium_that_does_not_answer_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()
    partitions = [
        SimpleNamespace(mountpoint="/media/dead", opts="rw"),
        SimpleNamespace(mountpoint="/", opts="rw"),
    ]
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(psutil, "disk_partitions", lambda: partitions)
    monkeypatch.setattr("edgemed.machine.os.access", lambda *_: never.wait(5))
    monkeypatch.setattr(machine, "_MEDIUM_SECONDS", 0.05)
    assert machine.mounted_media() == []
    never.set()
