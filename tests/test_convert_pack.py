"""Packs: what is proved and what is not stands in them, and `edgemed` installs, shows and runs them."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from edgemed_convert import pack as pack_module
from edgemed_convert.errors import CheckFailed
from edgemed_convert.model_card import CardFacts, model_card
from edgemed_convert.pack import Pack, pack_file, pack_files
from edgemed_convert.pack_manifest import PackFacts

from edgemed.check_report import CheckReport, encode_check_report
from edgemed.errors import EdgemedError, ModelCorrupt, StorageError, UsageError
from edgemed.manifest import DataSource, ModelManifest, Sampling, read_manifest
from edgemed.models import install_model, verify_model
from edgemed.paths import embedded_models_folder
from tests.gguf_files import write_tiny_adapter, write_tiny_llama
from tests.shared_material import shared_path
from tests.test_convert_run import report_of


@pytest.fixture
def checked(tmp_path: Path) -> Path:
    """Return a folder with tiny-F32.gguf, tiny-F16.gguf and a report in which both passed."""
    folder = tmp_path / "made"
    folder.mkdir()
    write_tiny_llama(folder / "tiny-F32.gguf")
    write_tiny_llama(folder / "tiny-F16.gguf", seed=1)
    save(folder, report_of(sorted(folder.glob("*.gguf"))))
    return folder


def save(folder: Path, report: CheckReport) -> None:
    (folder / "check.json").write_bytes(encode_check_report(report))


def edgemed(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "edgemed.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def pack(file: Path, folder: Path, *, force: bool = False, **facts: object) -> Pack:
    return pack_file(file, folder, facts=PackFacts(**facts), force=force)  # type: ignore[arg-type]


def test_a_checked_file_becomes_a_model_that_answers(checked: Path, tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text("Apache License")
    (tmp_path / "card.md").write_text("---\nx: y\n---\n# Recipe\n\nThree passes.\n", encoding="utf-8")
    made = pack(
        checked / "tiny-F32.gguf",
        tmp_path / "packs",
        data=(DataSource(name="MedQuAD | A", source="abachaa/MedQuAD", license="CC BY 4.0"),),
        training_card=tmp_path / "card.md",
        recipe=tmp_path / "card.md",
        licence_files=(tmp_path / "LICENSE",),
        system_prompt="",
        sampling=Sampling(temperature=0.0),
        notice="for tests only",
    )
    assert {path.name for path in made.folder.iterdir()} == {
        *("tiny-F32.gguf", "manifest.json", "MODEL_CARD.md", "check.json", "LICENSE")
    }
    manifest = read_manifest(made.folder / "manifest.json")
    assert manifest.license == "apache-2.0" and not manifest.unchecked
    assert manifest.check is not None and manifest.check.passed == 1
    card = (made.folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "**For tests only.**" in card
    assert "| MedQuAD \\| A | abachaa/MedQuAD | CC BY 4.0 |" in card
    assert "### Recipe\n\nThree passes." in card and "x: y" not in card
    assert "The logits were not compared" in card
    installed = install_model(made.folder)
    verify_model(installed)
    done = edgemed("ask", "--model", "tiny-F32", "Hi", "--max-tokens", "5", "--seed", "1")
    assert done.returncode == 0, done.stderr
    assert "for tests only" in done.stderr


def _without(report: CheckReport, name: str) -> CheckReport:
    return CheckReport(
        edgemed_version="0",
        model="tiny",
        model_sha256="0" * 64,
        files=[file for file in report.files if file.name != name],
        results=[result for result in report.results if result.file != name],
    )


@pytest.mark.parametrize(
    ("fault", "word"),
    [
        ("no report", "no check report"),
        ("not named", "does not name it"),
        ("other bytes", "other bytes"),
        ("failed", "tensors failed"),
        ("parent failed", "tensors of tiny-F16.gguf failed"),
    ],
)
def test_what_is_not_proved_is_refused_and_by_force_marked_for_good(
    checked: Path, tmp_path: Path, fault: str, word: str
) -> None:
    file = checked / "tiny-F32.gguf"
    files = sorted(checked.glob("*.gguf"))
    if fault == "no report":
        (checked / "check.json").unlink()
    elif fault == "not named":
        save(checked, _without(report_of(files), file.name))
    elif fault == "other bytes":
        write_tiny_llama(file, seed=9)
    else:
        save(checked, report_of(files, "F32" if fault == "failed" else "F16"))
    with pytest.raises(CheckFailed, match=word):
        pack(file, tmp_path / "packs")
    assert not (tmp_path / "packs").exists()
    made = pack(file, tmp_path / "packs", force=True, notice="for tests only")
    assert made.unchecked
    manifest = read_manifest(made.folder / "manifest.json")
    assert manifest.unchecked
    assert manifest.notice == "for tests only; unchecked: not proved to be the trained model"
    assert word in (made.folder / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_an_unchecked_model_is_shown_as_such_wherever_it_is_shown(checked: Path, tmp_path: Path) -> None:
    (checked / "check.json").unlink()
    install_model(pack(checked / "tiny-F32.gguf", tmp_path / "packs", force=True).folder, name="mine")
    assert "unchecked" in edgemed("models", "list").stdout
    assert "UNCHECKED" in edgemed("models", "show", "mine").stdout
    assert json.loads(edgemed("models", "show", "mine", "--json").stdout)["unchecked"] is True
    assert "unchecked" in edgemed("ask", "--model", "mine", "Hi", "--max-tokens", "3").stderr


def test_force_marks_nothing_that_passed(checked: Path, tmp_path: Path) -> None:
    assert not pack(checked / "tiny-F32.gguf", tmp_path / "packs", force=True).unchecked


def test_a_missing_licence_is_asked_for(tmp_path: Path) -> None:
    file = write_tiny_llama(tmp_path / "tiny-F32.gguf", license_name=None)
    save(tmp_path, report_of([file]))
    with pytest.raises(UsageError, match="licence") as caught:
        pack(file, tmp_path / "packs")
    assert "--license" in caught.value.hint
    made = pack(file, tmp_path / "packs", licence="gemma")
    assert read_manifest(made.folder / "manifest.json").license == "gemma"


@pytest.mark.parametrize("notice", ["red \x1b[31m", "turned \u202eround", "bell \x07"])
def test_words_that_a_terminal_would_obey_are_refused(checked: Path, tmp_path: Path, notice: str) -> None:
    with pytest.raises(UsageError, match="manifest"):
        pack(checked / "tiny-F32.gguf", tmp_path / "packs", notice=notice)
    assert not (tmp_path / "packs").exists()


def test_a_card_s_own_text_cannot_command_a_terminal(checked: Path, tmp_path: Path) -> None:
    (tmp_path / "card.md").write_text("Three \x1b]0;owned\x07passes.", encoding="utf-8")
    made = pack(checked / "tiny-F32.gguf", tmp_path / "packs", training_card=tmp_path / "card.md")
    assert "Three passes." in (made.folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    (tmp_path / "card.md").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="UTF-8"):
        pack(checked / "tiny-F32.gguf", tmp_path / "other", training_card=tmp_path / "card.md")


def test_a_pack_is_replaced_only_when_asked_and_never_lost(
    checked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, packs = checked / "tiny-F32.gguf", tmp_path / "packs"
    made = pack(file, packs)
    with pytest.raises(UsageError, match="exists"):
        pack(file, packs)
    before = (made.folder / "manifest.json").read_bytes()

    def refuse(source: Path, target: Path, described: object) -> None:
        raise StorageError("The disk is full.")

    with monkeypatch.context() as broken:
        broken.setattr(pack_module, "_place", refuse)
        with pytest.raises(StorageError):
            pack_file(file, packs, facts=PackFacts(notice="new"), overwrite=True)
    assert (made.folder / "manifest.json").read_bytes() == before
    pack_file(file, packs, facts=PackFacts(notice="new"), overwrite=True)
    assert read_manifest(made.folder / "manifest.json").notice == "new"
    assert [path.name for path in packs.iterdir()] == ["tiny-F32.pack"]


def test_a_disk_without_links_gets_a_copy(
    checked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    made = pack(checked / "tiny-F32.gguf", tmp_path / "packs")
    copy = made.folder / "tiny-F32.gguf"
    assert copy.read_bytes() == (checked / "tiny-F32.gguf").read_bytes()
    assert copy.stat().st_nlink == 1


@pytest.mark.parametrize("content", [b"", b"{}", b'{"schema_version": 2}', b"\xff"])
def test_a_damaged_report_is_no_proof(checked: Path, tmp_path: Path, content: bytes) -> None:
    (checked / "check.json").write_bytes(content)
    with pytest.raises(ModelCorrupt, match=r"check\.json"):
        pack(checked / "tiny-F32.gguf", tmp_path / "packs", force=True)


def test_what_edgemed_could_not_install_is_not_packed(tmp_path: Path) -> None:
    file = write_tiny_llama(tmp_path / "tiny-F32.gguf", vocabulary=False)
    save(tmp_path, report_of([file]))
    with pytest.raises(EdgemedError, match="no vocabulary"):
        pack(file, tmp_path / "packs")
    assert not list(tmp_path.glob("packs/*"))


def test_names_that_would_meet_are_refused(checked: Path, tmp_path: Path) -> None:
    file = checked / "tiny-F32.gguf"
    with pytest.raises(UsageError, match="same pack"):
        pack_files([file, file], tmp_path / "packs", facts=PackFacts())
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UsageError, match="names of their own"):
        pack_files([file], tmp_path / "packs", facts=PackFacts(licence_files=(tmp_path / "manifest.json",)))


def test_an_adapter_s_pack_installs(tmp_path: Path) -> None:
    file = write_tiny_adapter(tmp_path / "med.gguf")
    save(tmp_path, report_of([file]))
    made = pack(file, tmp_path / "packs", licence="apache-2.0")
    assert read_manifest(made.folder / "manifest.json").kind == "adapter"
    assert install_model(made.folder).manifest.kind == "adapter"


def test_a_split_model_is_packed_with_all_its_parts(tmp_path: Path) -> None:
    first = write_tiny_llama(tmp_path / "tiny.gguf", shards=2)
    save(tmp_path, report_of([first]))
    made = pack(first, tmp_path / "packs")
    assert len(list(made.folder.glob("*.gguf"))) == 2
    verify_model(install_model(made.folder))


def test_manifests_from_before_packs_are_still_read() -> None:
    manifest = read_manifest(embedded_models_folder() / "edge-chat-8m" / "manifest.json")
    assert isinstance(manifest, ModelManifest)
    assert manifest.check is None and not manifest.unchecked
    assert "never checked" in model_card(manifest, CardFacts(report=None, file="x"))


@pytest.mark.slow
@pytest.mark.parametrize("types", [("Q8_0", "Q4_K_M")])
def test_the_shared_chat_model_goes_from_folder_to_answer(tmp_path: Path, types: Sequence[str]) -> None:
    model = shared_path("models", "edge-chat-8m")
    command = [sys.executable, "-m", "edgemed_convert.cli", "run", str(model), "--types", ",".join(types)]
    command += ["--out", str(tmp_path / "out"), "--license", "apache-2.0", "--pack", "--system-prompt", ""]
    command += ["--sampling", "temperature=0.3,top_p=0.9,repetition_penalty=1.1"]
    command += ["--notice", "demonstration model, not for patients"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    for type_name in types:
        name = f"edge-chat-8m-{type_name}"
        assert edgemed("models", "install", tmp_path / "out" / f"{name}.pack").returncode == 0
        answer = edgemed("ask", "--model", name, "How is high blood pressure treated?", "--seed", "1")
        assert "blood pressure" in answer.stdout.lower(), answer.stdout
        assert "not for patients" in answer.stderr
