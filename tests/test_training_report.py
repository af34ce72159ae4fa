"""The report shows what was measured, nothing that was not, and never lets data become markup."""

import importlib.util
import math
import re
import struct
import subprocess
import sys
from html import escape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest
from click.testing import CliRunner
from edgemed_training import plots
from edgemed_training import sweep as sweep_module
from edgemed_training.base_model import BaseModel
from edgemed_training.card import CARD_NAME, EncodingFacts, TrainingCard
from edgemed_training.checkpoints import RunIdentity, file_sha256
from edgemed_training.cli import cli
from edgemed_training.errors import DataError, RecipeError, TrainingError
from edgemed_training.evaluate import ANSWERS_NAME, EVALUATION_NAME, AnswerLine, Evaluation, SystemScores
from edgemed_training.plots import LARGEST_COUNT, Line, line_chart, png, standalone, thinned
from edgemed_training.recipe import EvalSection, LoraSection, Recipe, load_recipe
from edgemed_training.report import write_report
from edgemed_training.scoring import DEFINITIONS, TOKEN_ACCURACY, Score
from edgemed_training.sweep import Sweep, sweep, table

from edgemed.command_line import run_command_line
from edgemed.errors import EdgemedError, MissingExtra
from tests.training_models import write_data

SHA = "a" * 64
EVIL = "<script>alert(1)</script>"


def _exit_code(arguments: list[str]) -> int:
    return run_command_line(cli, "edgemed-train", arguments)


def card(**changes: Any) -> TrainingCard:
    facts = EncodingFacts(
        examples=20,
        tokens=400,
        answer_tokens=300,
        max_length=64,
        cut_answers=5,
        dropped={},
        packed=True,
        rows=8,
        fill_share=0.9,
        system_prompt_in="system",
    )
    values: dict[str, Any] = {
        "edgemed_version": "0",
        "libraries": {"torch": "2"},
        "device": "CPU",
        "precision": "fp32",
        "recipe": Recipe(name=EVIL),
        "identity": RunIdentity(recipe_sha256=SHA, base_sha256=SHA, train_sha256=SHA, heldout_sha256=SHA),
        "base_model": "tiny",
        "base_license": "Apache-2.0",
        "data_sources": [{"name": EVIL, "source": "", "license": "CC BY 4.0"}],
        "leaking_pairs": 0,
        "encoding": facts,
        "steps": 2,
        "best_step": 2,
        "evaluations": [{"step": 2, "epoch": 1.0, "loss": 1.25, "token_f1": 0.5}],
        "final_loss": 2.0,
        "seconds": 3.0,
        "peak_gpu_bytes": None,
    }
    return TrainingCard(**(values | changes))


def write_run(folder: Path) -> Path:
    folder.mkdir(parents=True)
    log: list[dict[str, float | None]] = [
        {"step": 1, "loss": 3.0, "epoch": 0.5},
        {"step": 2, "loss": None, "epoch": 1.0},
        {"step": 2, "eval_loss": 1.25, "eval_bleu": 7.0, "eval_token_f1": 0.5, "epoch": 1.0},
    ]
    (folder / "log.jsonl").write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in log))
    (folder / CARD_NAME).write_bytes(msgspec.json.encode(card()))
    return folder


def write_evaluation(folder: Path, *, base_model: str = "tiny", count: int = 8) -> Path:
    folder.mkdir(parents=True)
    scores = {name: Score(value=0.25, low=0.125, high=0.5) for name in DEFINITIONS}
    systems = [
        SystemScores(system="adapter", scores=scores, seconds_per_answer=1.5, generated_tokens=9),
        SystemScores(
            system="nearest",
            scores={name: score for name, score in scores.items() if name != "ended"},
            seconds_per_answer=None,
            generated_tokens=0,
        ),
    ]
    evaluation = Evaluation(
        edgemed_version="0",
        base_model=base_model,
        base_sha256=SHA,
        adapter_sha256=SHA,
        heldout_sha256=SHA,
        train_sha256=SHA,
        items=count,
        skipped_items=0,
        settings=EvalSection(),
        device="CPU",
        precision="fp32",
        definitions=DEFINITIONS,
        systems=systems,
    )
    (folder / EVALUATION_NAME).write_bytes(msgspec.json.encode(evaluation))
    lines = [
        AnswerLine(
            id=f"row-{number}",
            system=system.system,
            answer=f"{EVIL} answer-{number} " + "long & wide " * 500,
            reference=f"<b>reference-{number}</b>",
            ended=None,
            tokens=3,
            token_f1=number / 10,
        )
        for system in systems
        for number in range(count)
    ]
    (folder / ANSWERS_NAME).write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    return folder


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "first run")


def test_the_page_holds_the_numbers_and_nothing_from_outside(run_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_report([run_folder, write_evaluation(tmp_path / "scored")], out, note=EVIL)
    text = out.read_text(encoding="utf-8")
    assert len(text) < 300_000
    assert "<script" not in text
    assert not re.findall(r"""(?:src|href|url)\s*[=(]""", text)
    for shown in (
        "[0.125, 0.500]",
        "5 (25.0%) at 64 tokens",
        "0 held-out pairs leak",
        "CC BY 4.0",
        "2.0000 nats",
    ):
        assert shown in text
    assert "prefers-color-scheme: dark" in text


def test_the_five_worst_answers_stand_there_escaped_or_not_at_all(tmp_path: Path) -> None:
    folder, out = write_evaluation(tmp_path / "scored"), tmp_path / "report.html"
    write_report([folder], out)
    text = out.read_text(encoding="utf-8")
    assert re.findall(r"<h3>row-(\d)", text) == ["0", "1", "2", "3", "4"]
    assert "&lt;b&gt;reference-4&lt;/b&gt;" in text
    write_report([folder], out, with_answers=False)
    text = out.read_text(encoding="utf-8")
    assert "reference-" not in text
    assert "answer-0" not in text


def test_a_model_of_the_study_is_compared_only_when_it_was_evaluated(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_report([write_evaluation(tmp_path / "other")], out)
    assert out.read_text(encoding="utf-8").count("not run: needs weights") == 25
    mistral = load_recipe("paper/mistral-7b").base.name
    write_report([write_evaluation(tmp_path / "mistral", base_model=mistral)], out)
    text = out.read_text(encoding="utf-8")
    assert text.count("not run: needs weights") == 20
    row = "<tr><td>Mistral 7B</td><td>0.28 (largest)</td><td>0.250 [0.125, 0.500] (largest 0.7)</td></tr>"
    assert row in text


def test_a_log_cut_by_a_power_cut_is_shown_as_far_as_it_goes(run_folder: Path, tmp_path: Path) -> None:
    (run_folder / CARD_NAME).unlink()
    with (run_folder / "log.jsonl").open("ab") as file:
        file.write(b'{"step": 3, "lo')
    write_report([run_folder], tmp_path / "report.html")
    assert "This run is not finished." in (tmp_path / "report.html").read_text(encoding="utf-8")


def _drop_last_line(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda run, scored: run.rename(run.with_name("gone")), "There is no folder"),
        (lambda run, scored: (run / "log.jsonl").unlink(), "holds neither a run"),
        (
            lambda run, scored: (run / "log.jsonl").write_bytes(b'{"step": 1}\n'),
            "line 1, has no step or epoch",
        ),
        (lambda run, scored: (run / "log.jsonl").write_bytes(b"\xff\xfe\n"), "line 1, is damaged"),
        (lambda run, scored: (run / "log.jsonl").write_bytes(b""), "holds nothing"),
        (lambda run, scored: (run / CARD_NAME).write_bytes(b"{}"), "is not a training card"),
        (lambda run, scored: (scored / EVALUATION_NAME).write_bytes(b"[]"), "is not an evaluation"),
        (lambda run, scored: (scored / ANSWERS_NAME).unlink(), "cannot be read"),
        (lambda run, scored: _drop_last_line(scored / ANSWERS_NAME), "does not hold the 8 answers"),
    ],
)
def test_a_missing_or_damaged_folder_is_one_sentence(
    damage: Any, sentence: str, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scored, out = write_evaluation(tmp_path / "scored"), tmp_path / "report.html"
    damage(run_folder, scored)
    assert _exit_code(["report", str(run_folder), str(scored), "--out", str(out)]) == DataError.exit_code
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("error: ")
    assert sentence in said[0]
    assert [line for line in said if not line.startswith(("error: ", "hint: "))] == []
    assert not out.exists()


needs_font = pytest.mark.skipif(
    importlib.util.find_spec("resvg_py") is None or not plots.draws_text(), reason="no resvg-py, or no font"
)


@needs_font
def test_charts_are_files_of_their_own(run_folder: Path, tmp_path: Path) -> None:
    options = ["--out", str(tmp_path / "report.html"), "--plots", str(tmp_path / "plots"), "--json"]
    done = CliRunner().invoke(cli, ["report", str(run_folder), *options])
    assert done.exit_code == 0
    files = [Path(name).name for name in msgspec.json.decode(done.stdout)["files"]]
    charts = ["first-run-loss", "first-run-scores"]
    assert files == ["report.html", *(f"{name}{end}" for end in (".svg", ".png") for name in charts)]
    for name in charts:
        assert ElementTree.parse(tmp_path / "plots" / f"{name}.svg").getroot().tag.endswith("svg")
        assert (tmp_path / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_runs_of_one_name_keep_their_own_charts(tmp_path: Path) -> None:
    first, second = (write_run(tmp_path / place / "run") for place in ("a", "b"))
    lines = [{"step": 1, "loss": 7.5, "epoch": 1.0}]
    (second / "log.jsonl").write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    write_report([first, second, first], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.findall(r"<h2>Training: (.*?)</h2>", text) == ["a/run", "b/run"]
    assert text.count("<figure>") == 3  # only the first has scores


@needs_font
def test_a_png_shows_lines_marks_and_text_in_their_colours() -> None:
    """What the renderer does not understand it leaves out in silence: variables, families, styles."""
    points = [(0.0, 1.0), (1.0, 2.0)]
    svg = line_chart("t", "an axis", [Line("a line", points, has_marks=True)])
    drawn = png(svg)
    width, height = struct.unpack(">II", drawn[16:24])
    assert (width, height) == (3 * 360, 3 * (210 + 17))
    for what in (
        r"<text .*?</text>",
        r"<circle .*?/>",
        r'<path class="line" .*?/>',
        r'<path class="grid" .*?/>',
    ):
        assert len(png(re.sub(what, "", svg))) < len(drawn), what
    assert png(svg.replace("var(--c0)", "#fff")) != drawn


@pytest.mark.parametrize(
    ("lacking", "error", "sentence"),
    [("library", MissingExtra, "PNG need resvg-py"), ("font", TrainingError, "no font")],
)
def test_what_png_lacks_is_said_when_all_else_is_written(
    lacking: str,
    error: type[EdgemedError],
    sentence: str,
    run_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if lacking == "library":
        monkeypatch.setattr(plots, "find_spec", lambda name: None)
    else:
        import resvg_py

        real = resvg_py.svg_to_bytes
        monkeypatch.setattr(
            resvg_py, "svg_to_bytes", lambda **options: real(**options, skip_system_fonts=True)
        )
        plots.draws_text.cache_clear()
    try:
        with pytest.raises(error, match=sentence):
            write_report([run_folder], tmp_path / "report.html", plots=tmp_path / "plots")
    finally:
        plots.draws_text.cache_clear()
    assert (tmp_path / "report.html").exists()
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == [
        "first-run-loss.svg",
        "first-run-scores.svg",
    ]


def test_token_accuracy_is_drawn_with_its_definition_where_it_was_recorded(
    run_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report.html"
    write_report([run_folder], out)
    assert "Token accuracy was not recorded." in out.read_text(encoding="utf-8")
    line = {"step": 4, "eval_loss": 1.0, "eval_bleu": 8.0, "eval_token_accuracy": 0.5, "epoch": 2.0}
    with (run_folder / "log.jsonl").open("ab") as file:
        file.write(msgspec.json.encode(line) + b"\n")
    write_report([run_folder], out)
    text = out.read_text(encoding="utf-8")
    assert f"Token accuracy: {escape(TOKEN_ACCURACY)}." in text and ">token accuracy</text>" in text


def test_table_4_is_printed_and_given_to_machines(tmp_path: Path) -> None:
    mistral = load_recipe("paper/mistral-7b").base.name
    scored = write_evaluation(tmp_path / "scored", base_model=mistral)
    command = ["report", str(scored), "--out", str(tmp_path / "report.html")]
    said = CliRunner().invoke(cli, command).stdout
    assert max(map(len, said.split("\n\n", 1)[1].splitlines())) <= 80
    rows = [[line[:15].strip(), line[15:42].strip(), line[42:]] for line in said.splitlines()]
    assert ["model", "study value", "ours"] in rows
    assert ["Mistral 7B", "0.28 (largest)", "0.250 [0.125, 0.500] (largest 0.7)"] in rows
    assert ["Mistral 7B", "1", "25.0% [12.5, 50.0]"] in rows
    assert ["Llama 2 7B", "0.2 to 0.3", "not run: needs weights"] in rows
    assert ["Llama 3 8B", "not recorded here", "not run: needs weights"] in rows
    assert "Definition (ours): mean of token F1" in said
    table_4 = msgspec.json.decode(CliRunner().invoke(cli, [*command, "--json"]).stdout)["table_4"]
    assert len(table_4) == 25
    (row,) = [row for row in table_4 if row["model"] == "Mistral 7B" and row["measure"] == "exact_match"]
    assert row["ours"] == {"value": 25.0, "low": 12.5, "high": 50.0}
    assert (row["study_value"], row["not_run"]) == ("1", None) and "spaces aside" in row["definition"]
    assert sum(row["not_run"] == "not run: needs weights" for row in table_4) == 20


def test_a_line_chart_survives_any_values() -> None:
    for points in (
        [],
        [(1.0, None)],
        [(1.0, math.nan), (2.0, math.inf)],
        [(1.0, 0.0)],
        [(1.0, 5.0), (2.0, 5.0)],
        [(0.0, -1e9), (1.0, 1e9)],
        [(0.0, 1e-12), (1.0, 2e-12)],
    ):
        svg = standalone(line_chart(EVIL, "x", [Line(f"{EVIL}&", points, has_marks=True)], from_zero=True))
        ElementTree.fromstring(svg)
        assert "nan" not in svg
        assert "inf" not in svg


def test_a_long_line_is_averaged_not_cut() -> None:
    points = [(float(x), float(x)) for x in range(10_000)]
    short = thinned(points)
    assert len(short) == LARGEST_COUNT
    assert sum(y for _x, y in short) / len(short) == pytest.approx(4999.5, rel=1e-3)


GRID = Recipe(
    name="tiny", lora=LoraSection(r=4), sweep={"lora.r": [4, 8, 8], "train.learning_rate": [1e-4, 2e-4]}
)


class Runs:
    """Stands for the child processes: trains by writing a card, and fails where it is told to."""

    def __init__(self, data: Path, failing: str = "") -> None:
        self.started: list[Recipe] = []
        self.failing = failing
        self._hashes: dict[str, Any] = {
            f"{name}_sha256": file_sha256(data / f"{name}.jsonl") for name in ("train", "heldout")
        }

    def __call__(self, command: list[str], *, stdout: Any, **_options: Any) -> Any:
        recipe, out = load_recipe(command[4]), Path(command[-1])
        self.started.append(recipe)
        if self.failing and self.failing in out.name:
            stdout.write(b"step 1\nerror: The GPU has too little memory.\nhint: Buy one.\n")
            return subprocess.CompletedProcess(command, 4)
        out.mkdir()
        identity = RunIdentity(recipe_sha256=recipe.sha256(), base_sha256=SHA, **self._hashes)
        loss = recipe.train.learning_rate * 1e4 + recipe.lora.r
        evaluations = [{"step": 2, "epoch": 1.0, "loss": loss}]
        (out / CARD_NAME).write_bytes(msgspec.json.encode(card(identity=identity, evaluations=evaluations)))
        return subprocess.CompletedProcess(command, 0)


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    data, base = write_data(tmp_path / "data"), tmp_path / "base"
    found = type("Base", (), {"fingerprint": lambda self: SHA})()
    monkeypatch.setattr(BaseModel, "read", lambda path: found)

    def run_all(runs: Runs, recipe: Recipe = GRID) -> Sweep:
        monkeypatch.setattr(subprocess, "run", runs)
        return sweep(recipe, data=data, base=base, out=tmp_path / "sweep")

    return run_all


def test_a_sweep_runs_each_combination_once_with_its_own_recipe(grid: Any, tmp_path: Path) -> None:
    runs = Runs(tmp_path / "data")
    done = grid(runs)
    tried = [(recipe.lora.r, recipe.train.learning_rate) for recipe in runs.started]
    assert tried == [(4, 1e-4), (4, 2e-4), (8, 1e-4), (8, 2e-4)]
    assert all(recipe.name == "tiny" and not recipe.sweep for recipe in runs.started)
    assert [run.evaluation["loss"] for run in done.runs] == [5.0, 6.0, 9.0, 10.0]  # the best first
    assert (tmp_path / "sweep" / "sweep.txt").read_text(encoding="utf-8") == table(done) + "\n"


def test_a_sweep_goes_on_where_it_stopped_and_past_a_failed_run(grid: Any, tmp_path: Path) -> None:
    first, second = Runs(tmp_path / "data", failing="r-4-learning-rate-0.0002"), Runs(tmp_path / "data")
    done = grid(first)
    assert len(first.started) == 4
    (failed,) = done.failed
    assert failed.error == "The GPU has too little memory."
    assert failed.values == {"lora.r": 4, "train.learning_rate": 2e-4}
    assert not grid(second).failed
    assert [recipe.train.learning_rate for recipe in second.started] == [2e-4]


def test_a_finished_run_on_other_data_is_not_taken_for_this_sweep(grid: Any, tmp_path: Path) -> None:
    grid(Runs(tmp_path / "data"))
    write_data(tmp_path / "data", train=20)
    with pytest.raises(DataError, match="other data"):
        grid(Runs(tmp_path / "data"))


@pytest.mark.parametrize("nothing", [{}, {"lora.r": []}])
def test_a_recipe_without_a_sweep_is_refused(grid: Any, nothing: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"\[sweep\]"):
        grid(Runs(tmp_path / "data"), Recipe(sweep=nothing))


def test_a_sweep_with_a_failed_run_ends_with_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [sweep_module.SweptRun(folder="r-4", values={"lora.r": 4}, state="failed", error="no")]
    monkeypatch.setattr(sweep_module, "sweep", lambda *args, **options: Sweep(select_by="loss", runs=runs))
    options = ["--data", str(tmp_path), "--base", str(tmp_path), "--out", str(tmp_path)]
    assert _exit_code(["sweep", "recipes/paper_table1", *options]) == 1
    assert "1 of 1 runs failed: r-4." in capsys.readouterr().err


def test_the_child_of_a_sweep_is_this_very_program(tmp_path: Path) -> None:
    """A child that fails before it trains is still named with its own sentence."""
    error = sweep_module._run(
        Recipe(), tmp_path / "run", ["--data", str(tmp_path), "--base", str(tmp_path / "x")]
    )
    assert str(tmp_path / "x") in error
    assert Path(sys.executable).exists()
