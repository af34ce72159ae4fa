"""What a report is made of: runs and evaluations, read from their folders. Used by `report`."""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from edgemed_training.card import CARD_NAME, TrainingCard
from edgemed_training.errors import DataError
from edgemed_training.evaluate import (
    ANSWERS_NAME,
    EVALUATION_NAME,
    AnswerLine,
    Evaluation,
    SystemName,
    read_evaluation,
)
from edgemed_training.trainer import LOG_NAME

LogLine = dict[str, float | None]
"""step and epoch, with loss or with eval_…; None where a value was no number."""
Struct = TypeVar("Struct")


@dataclass(frozen=True)
class RunFolder:
    """One training run."""

    name: str
    log: list[LogLine]
    card: TrainingCard | None
    """None: the run is not finished."""


@dataclass(frozen=True)
class EvaluationFolder:
    """One evaluation with its answers."""

    name: str
    evaluation: Evaluation
    answers: list[AnswerLine]

    @property
    def main_system(self) -> SystemName:
        """The adapter, or the base model where none was asked."""
        return "adapter" if self.evaluation.adapter_sha256 else "base"

    def worst(self, count: int) -> list[AnswerLine]:
        """Return the main system's answers of the lowest token F1, worst first."""
        mine = [line for line in self.answers if line.system == self.main_system]
        return heapq.nsmallest(count, mine, key=lambda line: (line.token_f1, line.id))


def read_folders(folders: Sequence[Path]) -> tuple[list[RunFolder], list[EvaluationFolder]]:
    """Read every folder as what it is.

    Raises:
        DataError: one is missing, is neither a run nor an evaluation, or is damaged.
    """
    runs: list[RunFolder] = []
    evaluations: list[EvaluationFolder] = []
    for folder, name in _named(folders):
        if (folder / EVALUATION_NAME).exists():
            evaluations.append(_evaluation(folder, name))
        elif (folder / LOG_NAME).exists():
            runs.append(_run(folder, name))
        elif folder.is_dir():
            raise DataError(
                f"{folder} holds neither a run ({LOG_NAME}) nor an evaluation ({EVALUATION_NAME}).",
                hint="Name the folder that `edgemed-train run` or `edgemed-train eval` wrote.",
            )
        else:
            raise DataError(f"There is no folder {folder}.", hint="Name a run's or an evaluation's folder.")
    return runs, evaluations


def read_card(path: Path) -> TrainingCard:
    """Read training_card.json.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=TrainingCard)
    except (OSError, msgspec.DecodeError) as error:
        raise DataError(
            f"{path} is not a training card: {error}.", hint="Give the run's command again."
        ) from error


def _named(folders: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Yield each folder once, with as much of the end of its path as tells it from the others."""
    paths = {folder.resolve().parts: folder for folder in folders}
    for parts, folder in paths.items():
        others = [other for other in paths if other != parts]
        length = next(
            (n for n in range(1, len(parts)) if all(other[-n:] != parts[-n:] for other in others)), len(parts)
        )
        yield folder, "/".join(parts[-length:])


def _run(folder: Path, name: str) -> RunFolder:
    log = _json_lines(folder / LOG_NAME, LogLine)
    for number, line in enumerate(log, 1):
        if line.get("step") is None or line.get("epoch") is None:
            raise DataError(
                f"{folder / LOG_NAME}, line {number}, has no step or epoch.", hint="Leave this folder out."
            )
    card = read_card(folder / CARD_NAME) if (folder / CARD_NAME).exists() else None
    return RunFolder(name, log, card)


def _evaluation(folder: Path, name: str) -> EvaluationFolder:
    evaluation = read_evaluation(folder / EVALUATION_NAME)
    answers = _json_lines(folder / ANSWERS_NAME, AnswerLine)
    found = EvaluationFolder(name, evaluation, answers)
    systems = {system.system for system in evaluation.systems}
    counted = {system: sum(line.system == system for line in answers) for system in systems}
    if found.main_system not in systems or any(count != evaluation.items for count in counted.values()):
        raise DataError(
            f"{folder / ANSWERS_NAME} does not hold the {evaluation.items} answers of each model that "
            f"{EVALUATION_NAME} tells of.",
            hint="Evaluate again with `edgemed-train eval` into a new folder.",
        )
    return found


def _json_lines(path: Path, kind: type[Struct]) -> list[Struct]:
    """Return all lines; an unfinished last one, as a power cut leaves it, is not counted."""
    try:
        *lines, unfinished = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.", hint="Leave this folder out.") from error
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(msgspec.json.decode(line, type=kind))
        except msgspec.DecodeError as error:
            raise DataError(
                f"{path}, line {number}, is damaged: {error}.", hint="Leave this folder out."
            ) from error
    if not found:
        what = "one unfinished line" if unfinished else "nothing"
        raise DataError(f"{path} holds {what}.", hint="Leave this folder out.")
    return found
