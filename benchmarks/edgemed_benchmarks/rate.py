"""The command `rate`: a blinded sheet for clinicians from the answers of a run."""

import hashlib
import random
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from edgemed.errors import StorageError, UsageError
from edgemed.operating_system import write_atomically
from edgemed.records import Item, Sample
from edgemed_benchmarks.errors import ItemError, RecordError
from edgemed_benchmarks.journal import Run, read_run
from edgemed_benchmarks.pack_format import is_pack
from edgemed_benchmarks.rating_format import KEY_SUFFIX, KeyEntry, RatedArm, RatingKey, encode_key
from edgemed_benchmarks.rating_sheet import SheetAnswer, SheetQuestion, sheet_page
from edgemed_benchmarks.run_items import items_of_runs

QUESTIONS = 20
"""About an hour's work with two models."""
SHEET_SUFFIX = ".html"
_CODE_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"
_CODE_LENGTH = 4


class Sheet(NamedTuple):
    """A sheet that was written."""

    path: Path
    key_path: Path
    key_sha256: str
    questions: int
    answers: int


class _Arm(NamedTuple):
    place: RatedArm
    answers: dict[tuple[str, str], Sample]
    """By suite and item id."""


def make_sheet(files: Sequence[Path], out: Path, *, questions: int = QUESTIONS, seed: int = 0) -> Sheet:
    """Write a sheet with the answers of all arms of some record files, and its key file beside it.

    Only questions that every arm answered are on it. Answers that are the same word for word are shown once.

    Args:
        files: record files; packs hold no answers.
        out: the sheet; must not be there yet.
        questions: on the sheet at most, drawn at random.
        seed: of the drawing; the answers' order is drawn without a seed, so that nobody can repeat it.

    Raises:
        RecordError: a file cannot be read, or its answers were not kept.
        ItemError: the questions' texts are not on this computer, or others now.
        UsageError: no question was answered by all, or the sheet is there already.
        StorageError: a file cannot be written.
    """
    path = out if out.suffix == SHEET_SUFFIX else out.with_name(out.name + SHEET_SUFFIX)
    key_path = path.with_name(path.name.removesuffix(SHEET_SUFFIX) + KEY_SUFFIX)
    for each in (path, key_path):
        if each.exists():
            raise UsageError(f"{each} is there already.", hint="Choose another --out.")
    for file in files:
        if is_pack(file):
            raise RecordError(f"{file} is a pack: it holds no answers.", hint="Give the record file.")
    runs = [read_run(file) for file in files]
    items = _items(runs)
    arms = [arm for run in runs for arm in _arms(run, items)]
    chosen = _chosen(arms, questions, seed, _not_found(runs, items))
    shown = [_question(items[key], key, arms) for key in chosen]
    random.SystemRandom().shuffle(shown)
    _give_codes([answer for question in shown for answer in question.answers])
    key = RatingKey(
        nonce=secrets.token_hex(16),
        seed=seed,
        arms=[arm.place for arm in arms],
        entries=[
            KeyEntry(
                code=answer.code,
                item_id=question.item.id,
                group=question.item.group or question.item.id,
                arms=answer.arms,
                text_sha256=hashlib.sha256(answer.text.encode("utf-8", "surrogatepass")).hexdigest(),
            )
            for question in shown
            for answer in question.answers
        ],
    )
    data = encode_key(key)
    key_sha256 = hashlib.sha256(data).hexdigest()
    _write(key_path, data)
    _write(path, sheet_page(shown, key_sha256).encode("utf-8", "backslashreplace"))
    return Sheet(path, key_path, key_sha256, len(shown), len(key.entries))


def _items(runs: Sequence[Run]) -> dict[tuple[str, str], Item]:
    """Return the questions of the quality and safety sets that these runs used."""
    return {key: each.item for key, each in items_of_runs(runs).items()}


def _not_found(runs: Sequence[Run], items: dict[tuple[str, str], Item]) -> int:
    """Return the number of questions that were answered in writing and are not on this computer."""
    written = {
        (sample.suite, sample.item_id)
        for run in runs
        for sample in run.samples
        if sample.suite in ("quality", "safety") and _is_answer(sample)
    }
    return len(written - set(items))


def _arms(run: Run, items: dict[tuple[str, str], Item]) -> Iterator[_Arm]:
    for number, arm in enumerate(run.arms):
        answers: dict[tuple[str, str], Sample] = {}
        for sample in run.samples:
            key = (sample.suite, sample.item_id)
            complete = sample.stop_reason in ("end_of_turn", "length")
            if sample.arm == number and key in items and complete and _is_answer(sample):
                answers.setdefault(key, sample)
        if answers and all(sample.text is None for sample in answers.values()):
            raise RecordError(f"{run.path} does not hold its answers.", hint="Make a run without --no-texts.")
        place = RatedArm(
            label=arm.label,
            model_name=arm.model_name,
            model_sha256=arm.model_sha256,
            run_id=run.start.run_id,
        )
        yield _Arm(place, {key: sample for key, sample in answers.items() if sample.text})


def _is_answer(sample: Sample) -> bool:
    return not sample.warm_up and sample.choice is None and not sample.condition


def _chosen(arms: Sequence[_Arm], questions: int, seed: int, not_found: int) -> list[tuple[str, str]]:
    if not arms or questions < 1:
        raise UsageError("There is nothing to rate.", hint="Give at least one file and one question.")
    common = set.intersection(*(set(arm.answers) for arm in arms))
    if not common and not_found:
        raise ItemError(
            f"The texts of the {not_found} questions that were answered are not on this computer.",
            hint="Make the sheet where the run was made, or first: edgemed-bench suites import FILE",
        )
    if not common:
        raise UsageError(
            "No question was answered in writing by every model of these files.",
            hint="Run the quality suite with each: edgemed-bench run --suite quality.",
        )
    ordered = sorted(common)
    random.Random(seed).shuffle(ordered)
    return ordered[:questions]


def _question(item: Item, key: tuple[str, str], arms: Sequence[_Arm]) -> SheetQuestion:
    by_text: dict[str, list[int]] = {}
    for number, arm in enumerate(arms):
        by_text.setdefault((arm.answers[key].text or "").strip(), []).append(number)
    answers = [SheetAnswer(text, having) for text, having in by_text.items()]
    random.SystemRandom().shuffle(answers)
    return SheetQuestion(item, answers)


def _give_codes(answers: Sequence[SheetAnswer]) -> None:
    taken: set[str] = set()
    for answer in answers:
        while not answer.code or answer.code in taken:
            answer.code = "".join(secrets.choice(_CODE_LETTERS) for _ in range(_CODE_LENGTH))
        taken.add(answer.code)


def _write(path: Path, data: bytes) -> None:
    try:
        write_atomically(path, data)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror}.", hint="Check the folder and the disk."
        ) from error
