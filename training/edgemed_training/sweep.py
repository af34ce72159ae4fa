"""`sweep`: every combination of a recipe's [sweep], each in a process of its own, and one table of them.

The same command after a stop goes on: finished runs are left as they are, a stopped one goes on from its last
checkpoint. A run that fails is named, and the others go on.
"""

import itertools
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import tomli_w

from edgemed.errors import StorageError
from edgemed.operating_system import write_atomically
from edgemed_training.base_model import BaseModel
from edgemed_training.card import CARD_NAME, TrainingCard
from edgemed_training.checkpoints import file_sha256
from edgemed_training.errors import DataError, RecipeError
from edgemed_training.recipe import Recipe, changed_recipe
from edgemed_training.records import HELDOUT_NAME, TRAIN_NAME
from edgemed_training.report_data import read_card

SWEEP_NAME, TABLE_NAME = "sweep.json", "sweep.txt"
_SHOWN_SCORES = ("loss", "token_f1", "rouge_l", "bleu")
_NOT_IN_A_NAME = re.compile(r"[^a-z0-9.]+")
_ERROR = re.compile(r"^error: (.*)$", re.MULTILINE)
Progress = Callable[[str], None]


class _Facts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Strict and immutable."""


class SweptRun(_Facts, frozen=True, kw_only=True):
    """One combination."""

    folder: str
    """Below the sweep's folder; its recipe lies beside it as .toml and what it said as .log."""
    values: dict[str, Any]
    """Recipe key → what was tried."""
    state: Literal["finished", "failed"]
    error: str = ""
    final_loss: float | None = None
    best_step: int | None = None
    evaluation: dict[str, float] = {}
    """The evaluation whose adapter was kept."""
    seconds: float | None = None
    """Of the run's last process."""


class Sweep(_Facts, frozen=True, kw_only=True):
    """All runs, the best first, failed ones last."""

    schema_version: Literal[1] = 1
    select_by: str
    runs: list[SweptRun]

    @property
    def failed(self) -> list[SweptRun]:
        """The runs without an adapter."""
        return [run for run in self.runs if run.state == "failed"]


def sweep(
    recipe: Recipe,
    *,
    data: Path,
    base: Path,
    out: Path,
    allow_leaks: bool = False,
    progress: Progress = lambda sentence: None,
) -> Sweep:
    """Run every combination of `recipe.sweep`, one after the other, and write sweep.json and sweep.txt.

    Args:
        recipe: with a [sweep].
        data: the folder that `prepare` wrote.
        base: the base model's folder.
        out: one folder for each run is made in it.
        allow_leaks: as for `run`.
        progress: told a sentence for each run.

    Raises:
        RecipeError: the recipe has no [sweep].
        DataError: the data cannot be read, or a finished run in `out` was trained on other data.
        BaseModelError: the base model cannot be used.
        StorageError: the disk.
    """
    combinations = _combinations(recipe)
    hashes = {
        "base_sha256": BaseModel.read(base).fingerprint(),
        "train_sha256": file_sha256(data / TRAIN_NAME),
        "heldout_sha256": file_sha256(data / HELDOUT_NAME),
    }
    options = ["--data", str(data), "--base", str(base), *(["--allow-leaks"] if allow_leaks else [])]
    runs = []
    for number, (values, changed) in enumerate(combinations, 1):
        folder = out / _folder_name(values, changed)
        progress(f"run {number} of {len(combinations)}: {_words(values)}")
        error = "" if _is_finished(folder, hashes) else _run(changed, folder, options)
        if error:
            progress(f"failed: {error}")
        runs.append(_swept(folder, values, error))
        _write_table(out, Sweep(select_by=recipe.eval.select_by, runs=runs))
    done = Sweep(select_by=recipe.eval.select_by, runs=sorted(runs, key=_order(recipe.eval.select_by)))
    _write_table(out, done)
    return done


def table(done: Sweep) -> str:
    """Return the runs as text, a line for each."""
    keys = list(done.runs[0].values)
    scores = [name for name in _SHOWN_SCORES if any(name in run.evaluation for run in done.runs)]
    rows = [[*keys, "step", *scores, "seconds", "folder"]]
    for run in done.runs:
        found = [f"{run.evaluation[name]:.4f}" if name in run.evaluation else "-" for name in scores]
        step = "-" if run.best_step is None else str(run.best_step)
        seconds = "failed" if run.seconds is None else f"{run.seconds:.0f}"
        rows.append([*(str(run.values[key]) for key in keys), step, *found, seconds, run.folder])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def _combinations(recipe: Recipe) -> list[tuple[dict[str, Any], Recipe]]:
    """Return the values that are tried together, and the recipe with them, without its [sweep]."""
    if not recipe.sweep or not all(recipe.sweep.values()):
        raise RecipeError(
            "The recipe has no [sweep], or one without values.",
            hint='Add a section [sweep] with lines such as "lora.r" = [8, 16].',
        )
    plain = msgspec.structs.replace(recipe, sweep={})
    found = {}
    for chosen in itertools.product(*recipe.sweep.values()):
        values = dict(zip(recipe.sweep, chosen, strict=True))
        # JSON writes these values as TOML does.
        changed = changed_recipe(
            plain, [f"{key}={msgspec.json.encode(value).decode()}" for key, value in values.items()]
        )
        found[changed.sha256()] = (values, changed)
    return list(found.values())


def _folder_name(values: dict[str, Any], changed: Recipe) -> str:
    """Return a name that tells the values and is another for every recipe, on every file system."""
    words = "-".join(f"{key.rpartition('.')[2]}-{value}" for key, value in values.items())
    return f"{_NOT_IN_A_NAME.sub('-', words.lower())[:80].strip('-.')}-{changed.sha256()[:8]}"


def _is_finished(folder: Path, hashes: dict[str, str]) -> bool:
    if not (folder / CARD_NAME).exists():
        return False
    identity = msgspec.to_builtins(read_card(folder / CARD_NAME).identity)
    if any(identity[name] != sha256 for name, sha256 in hashes.items()):
        raise DataError(
            f"{folder} holds a run on other data or another base model.",
            hint="Give the data and base model of this sweep, or name a new folder with --out.",
        )
    return True


def _run(recipe: Recipe, folder: Path, options: Sequence[str]) -> str:
    """Run one recipe in a child process; return what went wrong, or nothing."""
    toml, log = folder.with_name(f"{folder.name}.toml"), folder.with_name(f"{folder.name}.log")
    _write(toml, tomli_w.dumps(_without_none(msgspec.to_builtins(recipe))))
    command = [sys.executable, "-m", "edgemed_training.cli", "run", str(toml), *options, "--out", str(folder)]
    with log.open("ab") as file:
        start = file.tell()
        code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file).returncode
    if code == 0:
        return ""
    said = log.read_bytes()[start:].decode("utf-8", "replace")
    sentences: list[str] = _ERROR.findall(said)
    return sentences[-1] if sentences else f"it ended with exit code {code}; {log} has its last words."


def _without_none(values: Any) -> Any:
    if not isinstance(values, dict):
        return values
    return {key: _without_none(value) for key, value in values.items() if value is not None}


def _swept(folder: Path, values: dict[str, Any], error: str) -> SweptRun:
    if error:
        return SweptRun(folder=folder.name, values=values, state="failed", error=error)
    card = read_card(folder / CARD_NAME)
    return SweptRun(
        folder=folder.name,
        values=values,
        state="finished",
        final_loss=card.final_loss,
        best_step=card.best_step,
        evaluation=next(_kept(card), {}),
        seconds=card.seconds,
    )


def _kept(card: TrainingCard) -> Iterator[dict[str, float]]:
    return (entry for entry in card.evaluations if entry.get("step") == card.best_step)


def _order(select_by: str) -> Callable[[SweptRun], tuple[bool, float]]:
    """Return the key that puts the best first and failed runs last."""

    def key(run: SweptRun) -> tuple[bool, float]:
        # A run that answered no questions has only a loss.
        value = run.evaluation.get(select_by, run.evaluation.get("loss", 0.0))
        return run.state == "failed", value if select_by == "loss" else -value

    return key


def _words(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in values.items())


def _write_table(out: Path, done: Sweep) -> None:
    _write(out / SWEEP_NAME, msgspec.json.format(msgspec.json.encode(done), indent=2).decode() + "\n")
    _write(out / TABLE_NAME, table(done) + "\n")


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror or error}.", hint="Name another folder with --out."
        ) from error
