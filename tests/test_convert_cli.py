"""`edgemed-convert` as a user starts it: every bad input is one sentence, one hint, an exit code, no half file."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import click
import pytest
from edgemed_convert import cli as command_line
from edgemed_convert import inspection
from edgemed_convert.arguments import (
    clean_name,
    read_adapter,
    read_data,
    read_sampling,
    read_tensor_types,
    read_types,
)
from edgemed_convert.checkpoint import Checkpoint
from edgemed_convert.licence import find_licence
from edgemed_convert.progress_line import ProgressLine, readable_seconds

from edgemed import operating_system
from edgemed.errors import EdgemedError, UsageError
from tests.gguf_files import write_tiny_llama
from tests.tiny_checkpoints import write_base

ROOT = Path(__file__).parents[1]
CONVERT = [sys.executable, "-m", "edgemed_convert.cli"]
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder, with a base model, a GGUF file, and things that are neither."""
    monkeypatch.setattr(operating_system, "on_termination", lambda handler: None)
    monkeypatch.chdir(tmp_path)
    write_base(tmp_path / "base")
    write_tiny_llama(tmp_path / "model.gguf")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("no model")
    return tmp_path


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        command_line.main(list(arguments))
    assert isinstance(ended.value.code, int)
    return ended.value.code


BAD_INPUTS = [
    ("rnu base", 2, "'rnu'", "--help"),
    ("run", 2, "BASE", "--help"),
    ("run base --out out", 2, "--types", "--help"),
    ("run base --types Q8_0", 2, "--out", "--help"),
    ("run base --types Q8_0 --out out --tpyes x", 2, "--tpyes", "--help"),
    ("run base --types Q4_K_N --out out", 2, "Q4_K_N", "Q4_K_M"),
    ("run base --types , --out out", 2, "No quantization type", "--types"),
    ("run base --types Q8_0,F16,q8_0 --out out", 2, "Q8_0 is named twice", "Q8_0,F16"),
    ("run base --types Q4_K,Q4_K_M --out out", 2, "Q4_K_M is named twice", "--types"),
    ("run absent --types Q8_0 --out out", 3, "absent", "config.json"),
    ("run text.txt --types Q8_0 --out out", 3, "text.txt", "folder"),
    ("run empty --types Q8_0 --out out", 3, "config.json", ""),
    ("run base --adapter absent --types Q8_0 --out out", 3, "absent", "adapter_config.json"),
    ("run base --adapter absent:0.5 --types Q8_0 --out out", 3, "absent ", "adapter_config.json"),
    ("run base --types Q8_0 --out out --name a/b", 2, "a/b", "a-b"),
    ("run base --types Q8_0 --out out --pack", 2, "licence", "--license"),
    ("run base --types Q8_0 --out out --imatrix absent.gguf", 2, "absent.gguf", ""),
    ("run base --types Q8_0 --out out --imatrix a --imatrix-data b", 2, "importance matrix", "--imatrix"),
    ("run base --types Q8_0 --out out --intermediate-type Q8_0", 2, "Q8_0", "F16"),
    ("run base --types Q8_0 --out out --with-llama-cpp empty", 2, "convert_hf_to_gguf.py", "llama.cpp"),
    ("run base --types Q8_0 --out text.txt/out", 6, "text.txt/out", ""),
    ("run base --types Q8_0 --out out --license x --pack --data one,two", 2, "one,two", "quotes"),
    ("run base --types Q8_0 --out out --license x --pack --sampling heat=1", 2, "heat", "temperature"),
    ("run base --types Q8_0 --out out --license x --pack --recipe absent", 2, "absent", ""),
    ("merge base absent --out out", 3, "absent", ""),
    ("merge base --out out", 2, "ADAPTER", "--help"),
    ("merge base absent --out out --dtype Q8_0", 2, "Q8_0", "BF16"),
    ("export absent --out out.gguf", 3, "absent", ""),
    ("export base --type Q4_K_M --out out.gguf", 2, "Q4_K_M", "Q8_0"),
    ("quantize absent.gguf --types Q8_0 --out out", 6, "absent.gguf", ""),
    ("quantize text.txt --types Q8_0 --out out", 3, "text.txt", ""),
    ("quantize model.gguf --types Q9_0 --out out", 2, "Q9_0", "Q8_0"),
    ("quantize model.gguf --types Q8_0 --out out --tensor-type ffn", 2, "ffn", "ffn_down=Q8_0"),
    ("imatrix model.gguf --data absent.jsonl --out out.gguf", 6, "absent.jsonl", ""),
    ("check base absent.gguf", 2, "absent.gguf", ""),
    ("check base model.gguf model.gguf", 2, "once", ""),
    ("check base model.gguf --report text.txt", 2, "text.txt exists", "--overwrite"),
    ("adapter absent --base model.gguf --out out.gguf", 3, "absent", ""),
    ("adapter absent --base model.gguf --out out.gguf --report r", 2, "check", "--check"),
    ("pack absent.gguf --out out", 6, "absent.gguf", ""),
    ("pack model.gguf --out out", 3, "not checked", "--force"),
    ("pack model.gguf text.txt --out out --name one", 2, "One name", ""),
    ("inspect absent.gguf", 6, "absent.gguf", ""),
    ("inspect text.txt", 3, "text.txt", ""),
    ("inspect empty", 3, "empty", ""),
]


@pytest.mark.parametrize(
    ("arguments", "exit_code", "word", "hint"), BAD_INPUTS, ids=[bad_input[0] for bad_input in BAD_INPUTS]
)
def test_a_wrong_request_is_refused_in_a_sentence(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: str, exit_code: int, word: str, hint: str
) -> None:
    before = sorted(place.rglob("*"))
    assert run(*arguments.split()) == exit_code
    out, err = capsys.readouterr()
    error, *hints = [line for line in err.splitlines() if line.startswith(("error: ", "hint: "))]
    assert word in error
    assert hint in " ".join(hints)
    assert len(hints) <= 1
    assert "Traceback" not in err
    assert out == ""
    assert sorted(place.rglob("*")) == before


@POSIX
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: the system answers as it does at its end."""
    write_tiny_llama(tmp_path / "model.gguf")
    program = (
        "import resource, sys; from edgemed_convert.cli import main;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "main(['quantize', 'model.gguf', '--types', 'F16', '--out', 'out'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 6, done.stderr
    assert done.stderr.startswith("error: ")
    assert list((tmp_path / "out").iterdir()) == []


def test_memory_that_runs_out_is_one_sentence(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_out(path: Path) -> None:
        raise MemoryError

    monkeypatch.setattr(inspection, "inspect_file", run_out)
    assert run("inspect", "model.gguf") == 3
    assert capsys.readouterr().err.startswith("error: Memory ran out.\nhint: ")


def test_inspect_answers_people_and_machines(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", "model.gguf") == 0
    text = capsys.readouterr().out
    assert "tiny llama" in text and max(map(len, text.splitlines())) <= 80
    assert run("inspect", "model.gguf", "--json") == 0
    assert json.loads(capsys.readouterr().out)["architecture"] == "llama"


def test_quantize_says_what_is_really_in_the_files(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows of 64 numbers fit no block of Q4_K."""
    assert run("quantize", "model.gguf", "--types", "Q8_0,Q4_K_M", "--out", "out") == 0
    out, err = capsys.readouterr()
    assert "Q8_0    Q8_0 16" in out
    assert "the name Q4_K_M is not true" in err
    assert run("quantize", "model.gguf", "--types", "Q8_0", "--out", "out") == 2
    assert run("quantize", "model.gguf", "--types", "Q8_0", "--out", "out", "--overwrite", "--json") == 0
    (file,) = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert file["tensor_types"]["Q8_0"] == 16
    assert run("quantize", "model.gguf", "--types", "Q4_K_M", "--out", "new", "--strict") == 3
    assert not (place / "new").exists()


def test_every_command_and_option_has_help_and_a_place_in_the_guide() -> None:
    guide = (ROOT / "docs" / "convert.md").read_text(encoding="utf-8")
    for name, command in command_line.cli.commands.items():
        assert command.help, name
        assert f"edgemed-convert {name}" in guide
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.help, (name, option.name)
                assert option.opts[0] in guide, (name, option.opts[0])


def test_help_lists_the_commands_in_the_order_of_the_work(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--help") == 0
    text = capsys.readouterr().out
    places = [text.index(f"  {name} ") for name in ("run", "merge", "export", "quantize", "check", "pack")]
    assert places == sorted(places)
    assert max(map(len, text.splitlines())) <= 80
    assert "..." not in text.partition("Commands:")[2]


@pytest.mark.parametrize(
    ("text", "folder", "weight"),
    [
        ("runs/med", "runs/med", 1.0),
        ("runs/med:0.5", "runs/med", 0.5),
        ("runs/med:-1", "runs/med", -1.0),
        ("runs/med:1e-2", "runs/med", 0.01),
        ("C:\\runs\\med", "C:\\runs\\med", 1.0),
        ("C:\\runs\\med:.5", "C:\\runs\\med", 0.5),
        ("C:2", "C:2", 1.0),
        ("runs/med:nan", "runs/med:nan", 1.0),
        ("runs/med:v2", "runs/med:v2", 1.0),
    ],
)
def test_an_adapter_s_weight_is_told_from_a_path(text: str, folder: str, weight: float) -> None:
    assert read_adapter(text) == (Path(folder), weight)


@pytest.mark.skipif(sys.platform == "win32", reason="a colon in a name")
def test_a_folder_that_ends_like_a_weight_is_that_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("med:2").mkdir()
    assert read_adapter("med:2") == (Path("med:2"), 1.0)


def test_what_is_written_on_the_command_line_is_read_with_care() -> None:
    assert read_types(" f16, q4_k ,Q8_0,") == ["F16", "Q4_K_M", "Q8_0"]
    assert read_tensor_types(["a=b=Q8_0"]) == (("a=b", "Q8_0"),)
    (data,) = read_data(['"MedQuAD, Asma Ben Abacha", abachaa/MedQuAD, CC BY 4.0'])
    assert (data.name, data.source, data.license) == (
        "MedQuAD, Asma Ben Abacha",
        "abachaa/MedQuAD",
        "CC BY 4.0",
    )
    assert read_sampling("temperature=0, top_k=5").top_k == 5
    for text in ("temperature=9", "temperature=x", "top_k=0.5", "temperature"):
        with pytest.raises(UsageError, match="sampling"):
            read_sampling(text)
    assert clean_name(" Größe 7/b! ") == "Gr-e-7-b"


@pytest.mark.parametrize(
    ("file", "content", "name"),
    [
        ("README.md", "---\nlanguage: en\nlicense: apache-2.0\n---\n# x\nlicense: mit\n", "apache-2.0"),
        ("README.md", "---\r\nlicense: 'llama3.2'\r\n---\r\n", "llama3.2"),
        ("README.md", "---\nlicense: other\nlicense_name: qwen-research\n---\n", "qwen-research"),
        ("README.md", "The license: mit, perhaps.\n", None),
        ("LICENSE", "Apache License\n                           Version 2.0, January 2004\n", "apache-2.0"),
        ("LICENSE.txt", "LLAMA 3.2 COMMUNITY LICENSE AGREEMENT\n", "llama3.2"),
        ("LICENSE", "All rights reserved.", None),
        ("LICENSE", b"\xff\xfe\x00", None),
    ],
)
def test_a_base_model_s_licence_is_found_where_it_is_stated(
    tmp_path: Path, file: str, content: str | bytes, name: str | None
) -> None:
    base = write_base(tmp_path / "base")
    (base / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    found = find_licence(Checkpoint.open(base))
    assert (found.name if found else None) == name
    assert found is None or found.source == file


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _shown(is_terminal: bool, steps: Sequence[tuple[float, int]]) -> str:
    clock, stream = _Clock(), StringIO()
    line = ProgressLine(stream, is_terminal=is_terminal, columns=60, clock=clock)
    line.step("1/2 check")
    for wait_seconds, done in steps:
        clock.now += wait_seconds
        line("tensors", done, 100)
    line.clear()
    return stream.getvalue()


def test_a_terminal_sees_one_line_with_the_time_left() -> None:
    shown = _shown(True, [(0.5, 10), (0.01, 11), (4.0, 50)])
    assert "\n" not in shown
    assert "\r1/2 check: comparing tensors, 10 %" in shown
    assert "11 %" not in shown
    assert "50 %, 4 s left" in shown
    assert max(map(len, shown.split("\r"))) < 60
    assert shown.endswith(" \r")


def test_a_log_gets_a_line_now_and_then() -> None:
    steps = [(1.0, done) for done in range(100)]
    lines = _shown(False, steps).splitlines()
    assert lines[0] == "1/2 check"
    assert len(lines) == 1 + 4
    assert lines[1] == "1/2 check: comparing tensors, 2 %, 1:38 min left"


def test_durations_are_readable() -> None:
    assert [readable_seconds(seconds) for seconds in (0.4, 59, 61, 7325)] == [
        *("0 s", "59 s", "1:01 min", "2:02 h")
    ]


def test_an_unforeseen_refusal_of_the_system_is_one_sentence(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path) -> None:
        raise OSError(5, os.strerror(5), "model.gguf")

    monkeypatch.setattr("edgemed_convert.inspection.inspect_file", refuse)
    assert run("inspect", "model.gguf") == EdgemedError.exit_code
    assert "(model.gguf)" in capsys.readouterr().err
