"""`edgemed-convert run`: the whole way, resumed after every kill, refused when it cannot be done."""

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgemed_convert import cli as command_line
from edgemed_convert import estimate
from edgemed_convert import run as run_module
from edgemed_convert.provenance import merged_adapters
from edgemed_convert.run_plan import WORK_NAME

from edgemed import machine, operating_system
from edgemed.check_report import CheckedFile, CheckReport, CheckResult, read_check_report
from edgemed.gguf_header import read_header, tensor_types
from tests import tiny_models
from tests.tiny_checkpoints import adapter_weights, random_arrays, write_adapter

CONVERT = [sys.executable, "-m", "edgemed_convert.cli"]
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
# The gate takes seconds; what is tested here is everything around it.
QUICK_GATE = (
    "import edgemed_convert.run as run; from tests.test_convert_run import quick_gate;"
    "run.check_files = quick_gate; from edgemed_convert.cli import main; main()"
)


def quick_gate(model: Any, files: Sequence[Path], adapters: Any = (), **options: Any) -> CheckReport:
    """Stand in for the gate: opens every file, fails none."""
    return report_of(files)


def report_of(files: Sequence[Path], failing: str = "") -> CheckReport:
    checked, results = [], []
    for path in files:
        header = read_header(path)
        label = path.stem.rpartition("-")[2]
        checked.append(
            CheckedFile(
                name=path.name,
                size_bytes=header.file_size,
                sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
                quantization_type=label,
                tensor_types=tensor_types(header),
            )
        )
        status = "failed" if failing and failing in path.name else "passed"
        results.append(CheckResult(name="tensors", file=path.name, status=status, sentence="Looked."))  # type: ignore[arg-type]
    return CheckReport(
        edgemed_version="0", model="tiny", model_sha256="0" * 64, files=checked, results=results
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the base model "tiny" and an adapter of its attention "med"."""
    place = tmp_path_factory.mktemp("run")
    base = tiny_models.build("edge", place / "tiny")
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n", encoding="utf-8")
    (base / "LICENSE").write_text("Apache License\n Version 2.0\n", encoding="utf-8")
    shapes = {f"model.layers.{layer}.self_attn.q_proj.weight": (256, 256) for layer in range(2)}
    weights = adapter_weights(random_arrays(shapes, 3))
    write_adapter(place / "med", {name: np.float32(0.1) * numbers for name, numbers in weights.items()})
    return place


@pytest.fixture
def place(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder: links to what was built, and room for output; the gate is quick."""
    monkeypatch.setattr(operating_system, "on_termination", lambda handler: None)
    monkeypatch.setattr(run_module, "check_files", quick_gate)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    return tmp_path


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        command_line.main(["run", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def hashes(folder: Path) -> dict[str, str]:
    """Return the names and SHA-256 of all that a run made but its own record."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "run.json"
    }


def test_one_command_goes_the_whole_way(built: Path, tmp_path: Path) -> None:
    """Base, adapter, real gate, packs: nothing stands in for anything."""
    out = tmp_path / "out"
    arguments = ["run", "tiny", "--adapter", "med:0.5", "--types", "Q4_K_M", "--out", str(out), "--pack"]
    done = subprocess.run(
        [*CONVERT, *arguments], cwd=built, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    said, table = done.stderr, done.stdout
    assert (
        said.index("disk ") < said.index("memory ") < said.index("1/4 export F16") < said.index("3/4 check")
    )
    assert re.search(r"Q4_K_M +Q4_K \d+, .*Q6_K \d+.* +\d\.\d\d +.* [kM]B +.* passed", table), table
    assert max(map(len, table.splitlines()[1:])) <= 80
    names = {path.name for path in out.iterdir()}
    assert names == {
        *("tiny-med-Q4_K_M.gguf", "tiny-med-Q4_K_M.pack", "check.json", "run.json", ".run.lock"),
    }
    report = read_check_report(out / "check.json")
    assert report.passed and not report.not_run
    assert {"logits", "quantization_loss", "tokens"} <= {result.name for result in report.results}
    assert report.files[0].name == "tiny-med-F16.gguf"
    header = read_header(out / "tiny-med-Q4_K_M.gguf")
    (adapter,) = merged_adapters(header)
    assert (adapter.name, adapter.weight) == ("med", 0.5)
    assert header.text("general.license") == "apache-2.0"
    manifest = json.loads((out / "tiny-med-Q4_K_M.pack" / "manifest.json").read_text())
    assert manifest["adapters"][0]["sha256"] == adapter.sha256
    assert manifest["check"].get("failed", 0) == 0
    assert (out / "tiny-med-Q4_K_M.pack" / "LICENSE").is_file()


def test_what_is_done_is_not_done_again(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["tiny", "--out", "out", "--types"]
    assert run(*arguments, "Q8_0") == 0
    before = {path.name: path.stat().st_mtime_ns for path in Path("out").glob("*.gguf")}
    capsys.readouterr()
    assert run(*arguments, "Q8_0") == 0
    out, err = capsys.readouterr()
    assert "nothing: everything is done already" in err and "Q8_0 15" in out
    assert run(*arguments, "Q8_0,Q4_K_M", "--json") == 0
    out, err = capsys.readouterr()
    assert "to do    export F16, quantize Q4_K_M, check (1 done already)" in err
    assert [file["type_name"] for file in json.loads(out)["files"]] == ["Q8_0", "Q4_K_M"]
    assert Path("out/tiny-Q8_0.gguf").stat().st_mtime_ns == before["tiny-Q8_0.gguf"]
    Path("out/tiny-Q8_0.gguf").write_bytes(b"damaged since")
    assert run(*arguments, "Q8_0,Q4_K_M") == 0
    assert read_header(Path("out/tiny-Q8_0.gguf")).tensors


def test_unquantized_files_need_no_intermediate_one(place: Path) -> None:
    assert run("tiny", "--out", "out", "--types", "BF16,F32") == 0
    assert {path.name for path in Path("out").glob("*.gguf")} == {"tiny-BF16.gguf", "tiny-F32.gguf"}
    assert run("tiny", "--out", "two", "--types", "Q8_0", "--intermediate-type", "bf16", "--name", "two") == 0
    assert [file.name for file in read_check_report(Path("two/check.json")).files] == [
        *("two-BF16.gguf", "two-Q8_0.gguf")
    ]


def test_files_of_others_and_of_other_inputs_are_not_replaced(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("out").mkdir()
    Path("out/tiny-Q8_0.gguf").write_bytes(b"somebody's work")
    arguments = ["tiny", "--out", "out", "--types", "Q8_0"]
    assert run(*arguments) == 2
    assert Path("out/tiny-Q8_0.gguf").read_bytes() == b"somebody's work"
    assert run(*arguments, "--overwrite") == 0
    made = hashes(Path("out"))
    weights = Path("tiny/model.safetensors")
    os.utime(weights, ns=(1, 1))
    assert run(*arguments) == 2
    assert "not what this run would make" in capsys.readouterr().err
    assert hashes(Path("out")) == made
    assert run(*arguments, "--overwrite") == 0
    Path("out/run.json").write_text('{"of": "another program"}')
    assert run(*arguments, "--overwrite") == 2
    assert "run.json is no record" in capsys.readouterr().err


def test_two_runs_into_one_folder_are_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").mkdir()
    with operating_system.lock_file(Path("out", run_module.LOCK_NAME)):
        assert run("tiny", "--out", "out", "--types", "Q8_0") == 2
    assert "error: Another run is writing into out." in capsys.readouterr().err
    assert not list(Path("out").glob("*.gguf"))


def test_what_a_killed_run_left_is_removed(place: Path) -> None:
    work = Path("out", WORK_NAME)
    work.mkdir(parents=True)
    leftovers = [Path("out/.tiny-Q4_K_M.gguf.partial"), work / ".tiny-F16.gguf.partial.gguf"]
    in_use = Path("out/.other-Q8_0.gguf.partial")
    for path in (*leftovers, in_use):
        path.write_bytes(b"half")
    Path("out/.old.pack.partial").mkdir()
    with operating_system.lock_file(Path("out/.other-Q8_0.gguf.lock")):
        assert run("tiny", "--out", "out", "--types", "Q8_0") == 0
    assert [path.name for path in Path("out").glob(".*.partial*")] == [in_use.name]
    assert not work.exists()


@pytest.mark.parametrize(
    ("free_disk", "free_memory", "exit_code", "word"),
    [(10_000_000, 2**40, 6, "disk of out"), (2**40, 100_000_000, 3, "of memory")],
)
def test_what_cannot_fit_is_refused_before_anything_is_written(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    free_disk: int,
    free_memory: int,
    exit_code: int,
    word: str,
) -> None:
    monkeypatch.setattr(estimate, "free_disk_bytes", lambda folder: free_disk)
    monkeypatch.setattr(machine, "available_memory_bytes", lambda: free_memory)
    assert run("tiny", "--out", "out", "--types", "F32,F16,Q8_0,Q4_K_M") == exit_code
    assert word in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_file_that_fails_is_not_packed_and_checked_anew_next_time(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_module, "check_files", lambda model, files, adapters, **_: report_of(files, "Q4"))
    arguments = ["tiny", "--out", "out", "--types", "Q8_0,Q4_K_M", "--pack"]
    assert run(*arguments) == 3
    out, err = capsys.readouterr()
    assert re.search(r"Q4_K_M .* FAILED", out)
    assert "FAILED: tiny-Q4_K_M.gguf, tensors: Looked." in err
    assert Path("out/tiny-Q8_0.pack").is_dir() and not Path("out/tiny-Q4_K_M.pack").exists()
    assert Path("out", WORK_NAME, "tiny-F16.gguf").is_file()
    monkeypatch.setattr(run_module, "check_files", quick_gate)
    assert run(*arguments) == 0
    assert Path("out/tiny-Q4_K_M.pack").is_dir() and not Path("out", WORK_NAME).exists()


def test_a_fault_of_the_unquantized_file_fails_all_that_is_made_of_it(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        run_module, "check_files", lambda model, files, adapters, **_: report_of(files, "F16")
    )
    assert run("tiny", "--out", "out", "--types", "Q8_0", "--pack") == 3
    assert "the file that was quantized, tensors" in capsys.readouterr().err
    assert not list(Path("out").glob("*.pack"))


def test_an_importance_matrix_is_made_once_and_used(place: Path) -> None:
    lines = [
        {"question": f"What is fever {number}?", "answer": "A high temperature. " * 9}
        for number in range(260)
    ]
    Path("data.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    arguments = ["tiny", "--out", "out", "--types", "Q4_K_M", "--imatrix-data", "data.jsonl"]
    assert run(*arguments) == 0
    assert read_header(Path("out/tiny-Q4_K_M.gguf")).text("quantize.imatrix.file") == "tiny-imatrix.gguf"


FAKE_SCRIPT = """
import pathlib, shutil, sys
folder, outfile = sys.argv[1], sys.argv[sys.argv.index("--outfile") + 1]
if pathlib.Path("fail").exists():
    sys.exit("Model Unheardof is not supported")
config = pathlib.Path(folder, "config.json").read_text()
assert "LlamaForCausalLM" in config and pathlib.Path(folder, "model.safetensors").exists()
pathlib.Path("seen.txt").write_text(folder)
shutil.copyfile("prepared.gguf", outfile)
"""


def test_the_user_s_own_llama_cpp_exports_what_we_then_check(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The merged folder is handed to the script, and its file goes the same way as ours."""
    Path("llama.cpp").mkdir()
    Path("llama.cpp/convert_hf_to_gguf.py").write_text(FAKE_SCRIPT, encoding="utf-8")
    assert run("tiny", "--out", "ours", "--types", "F16") == 0
    shutil.copyfile("ours/tiny-F16.gguf", "prepared.gguf")
    arguments = [
        "tiny",
        "--adapter",
        "med",
        "--out",
        "out",
        "--types",
        "Q8_0",
        "--with-llama-cpp",
        "llama.cpp",
    ]
    Path("fail").touch()
    assert run(*arguments) == 4
    assert "convert_hf_to_gguf.py failed: Model Unheardof is not supported." in capsys.readouterr().err
    assert not [path for path in Path("out").rglob("*") if "gguf" in path.name]
    Path("fail").unlink()
    assert run(*arguments) == 0
    assert Path("seen.txt").read_text().endswith("merged")
    assert read_header(Path("out/tiny-med-Q8_0.gguf")).tensors
    assert not Path("out", WORK_NAME).exists()


def _start(place: Path, out: str, *, program: Sequence[str]) -> "subprocess.Popen[str]":
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [*program, "run", "tiny", "--adapter", "med", "--types", "Q8_0,Q4_K_M", "--out", out, "--pack"],
        cwd=place,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _finish(process: "subprocess.Popen[str]") -> str:
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    return out


def _half_files(folder: Path) -> list[Path]:
    """Return GGUF files and packs that stand under their names and are not whole."""
    half = []
    for path in folder.rglob("*.gguf"):
        if not path.name.startswith("."):
            header = read_header(path)
            if header.tensors[-1].offset + header.tensors[-1].size_bytes > path.stat().st_size:
                half.append(path)
    return half + [pack for pack in folder.glob("*.pack") if not (pack / "manifest.json").is_file()]


def _kill_and_resume(place: Path, program: Sequence[str], rounds: int) -> None:
    """Kill a run at a random moment, and the one that resumes it; let the third finish; compare every byte."""
    began = time.monotonic()
    _finish(_start(place, "whole", program=program))
    took = time.monotonic() - began
    expected = hashes(place / "whole")
    chance = random.Random(5)
    met = 0
    for number in range(rounds):
        folder = f"killed-{number}"
        # Late stages too; what is resumed has less left to do, and must be met at work all the same.
        for share in (0.9, 0.35):
            process = _start(place, folder, program=program)
            time.sleep(chance.uniform(0.1, share) * took)
            met += process.poll() is None
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate(timeout=60)
            assert _half_files(place / folder) == [], number
        _finish(_start(place, folder, program=program))
        assert hashes(place / folder) == expected, number
    assert met >= rounds


@POSIX
def test_a_killed_run_ends_with_the_bytes_of_an_undisturbed_one(place: Path) -> None:
    _kill_and_resume(place, [sys.executable, "-c", QUICK_GATE], 2)


@pytest.mark.slow
@pytest.mark.timeout(900)
@POSIX
def test_a_run_with_the_real_gate_survives_ten_kills(place: Path) -> None:
    """The report is the same, too: nothing in it depends on when it was made."""
    _kill_and_resume(place, CONVERT, 5)


def _interrupt(process: "subprocess.Popen[str]", at: Callable[[str], bool], number: int) -> tuple[int, str]:
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if at(line):
            process.send_signal(number)
            break
    said += process.stderr.read()
    process.communicate(timeout=60)
    return process.returncode, said


@POSIX
@pytest.mark.parametrize(
    ("number", "step", "exit_code", "words"),
    [(signal.SIGINT, "check", 130, "Stopped."), (signal.SIGTERM, "quantize", 143, "Ended by the system.")],
)
def test_ctrl_c_ends_it_at_once_without_half_a_file(
    place: Path, number: int, step: str, exit_code: int, words: str
) -> None:
    """With the real gate: it has a llama.cpp process that must end, too."""
    process = _start(place, "out", program=CONVERT)
    code, said = _interrupt(process, lambda line: f"/6 {step}" in line, number)
    assert code == exit_code, said
    assert words in said and "Traceback" not in said
    assert not list((place / "out").rglob(".*.partial*")) and _half_files(place / "out") == []
    assert not (place / "out" / "check.json").exists()
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


QUESTION_ANSWER = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


def write_trained_adapter(folder: Path, modules: str, target: str, template: str) -> Path:
    """Write an adapter of a square matrix of both layers, with the template it was trained with."""
    shapes = {f"{modules.format(layer)}.{target}.weight": (256, 256) for layer in range(2)}
    write_adapter(folder, adapter_weights(random_arrays(shapes, 3), (target,)), target_modules=[target])
    (folder / "chat_template.jinja").write_bytes(template.encode())
    return folder


def test_a_base_without_a_template_gets_that_of_its_adapters_training(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny_models.build("gpt2", place / "gpt2")
    (base / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    write_trained_adapter(place / "qa", "transformer.h.{}", "attn.c_proj", QUESTION_ANSWER)
    arguments = ["gpt2", "--adapter", "qa", "--types", "F16", "--pack", "--out"]
    assert run(*arguments, "out") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert f"template {Path('qa/chat_template.jinja')}, the one of the adapter's training" in said

    def template(out: str) -> str:
        (manifest,) = Path(out).glob("*.pack/manifest.json")
        return str(json.loads(manifest.read_bytes())["chat_template"])

    assert template("out") == QUESTION_ANSWER
    (place / "named.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")
    assert run(*arguments, "two", "--chat-template", "named.jinja") == 0
    assert template("two") == "{{ messages[0].content }}"
    # Another template makes another pack.
    (place / "qa" / "chat_template.jinja").write_text("{{ messages }} other", encoding="utf-8")
    assert run(*arguments, "out", "--overwrite") == 0
    assert template("out") == "{{ messages }} other"


@pytest.mark.parametrize(("theirs", "is_told"), [("own", False), ("another", True)])
def test_a_base_with_a_template_keeps_it_and_another_ones_is_told(
    place: Path, capsys: pytest.CaptureFixture[str], theirs: str, is_told: bool
) -> None:
    own = "{{ messages[0].content }}{% if add_generation_prompt %}:{% endif %}"
    (place / "tiny" / "chat_template.jinja").write_text(own, encoding="utf-8")
    template = own if theirs == "own" else QUESTION_ANSWER
    write_trained_adapter(place / "qa", "model.layers.{}.self_attn", "q_proj", template)
    assert run("tiny", "--adapter", "qa", "--types", "F16", "--pack", "--out", "out") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert ("the model's own, NOT that of the adapter's training" in said) == is_told
    (manifest,) = Path("out").glob("*.pack/manifest.json")
    assert json.loads(manifest.read_bytes()).get("chat_template") is None
