"""`eval`: what the adapter answers to questions it never saw, beside the base model and a mere look-up.

Every answer is generated greedily from the prompt alone; nothing is measured with the reference in sight.
"""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgemed import __version__
from edgemed.errors import StorageError, UsageError
from edgemed.operating_system import write_atomically
from edgemed_training.base_model import BaseModel
from edgemed_training.card import CARD_NAME, TrainingCard
from edgemed_training.chat_format import ChatFormat
from edgemed_training.checkpoints import Sha256, file_sha256
from edgemed_training.errors import DataError, TrainingFailed
from edgemed_training.generation import GeneratedAnswer, generate_answers
from edgemed_training.libraries import prepare_libraries
from edgemed_training.nearest_question import nearest_answers
from edgemed_training.recipe import EvalSection, Recipe, changed_recipe, load_recipe
from edgemed_training.records import TRAIN_NAME, QAPair, read_pairs
from edgemed_training.scoring import DEFINITIONS, Score, score_intervals

EVALUATION_NAME = "evaluation.json"
ANSWERS_NAME = "answers.jsonl"
SystemName = Literal["adapter", "base", "nearest"]
Progress = Callable[[str], None]


class _Facts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Strict and immutable."""


class SystemScores(_Facts, frozen=True, kw_only=True):
    """What one system scored: the adapter, the base model without it, or the nearest training question."""

    system: SystemName
    scores: dict[str, Score]
    seconds_per_answer: float | None
    """Median over answers, of batches of `batch_size`; None where no model answered."""
    generated_tokens: int


class Evaluation(_Facts, frozen=True, kw_only=True):
    """One `eval`, as read by `report`."""

    schema_version: Literal[1] = 1
    edgemed_version: str
    base_model: str
    base_sha256: Sha256
    adapter_sha256: Sha256 | None
    """Of adapter_model.safetensors."""
    heldout_sha256: Sha256
    train_sha256: Sha256 | None
    items: int
    skipped_items: int
    """Held-out pairs whose question does not fit the model."""
    settings: EvalSection
    device: str
    precision: str
    definitions: dict[str, str]
    systems: list[SystemScores]


class AnswerLine(_Facts, frozen=True, kw_only=True):
    """One line of answers.jsonl."""

    id: str
    system: SystemName
    answer: str
    reference: str
    ended: bool | None
    tokens: int
    token_f1: float


def evaluate(
    base: Path,
    *,
    data: Path,
    out: Path,
    recipe: Recipe | None = None,
    adapter: Path | None = None,
    items: int | None = None,
    progress: Progress = lambda sentence: None,
) -> Evaluation:
    """Answer the held-out questions, score them, and write evaluation.json and answers.jsonl.

    Args:
        base: the base model's folder.
        data: heldout.jsonl; train.jsonl beside it gives the nearest-question baseline.
        out: the folder to write into.
        recipe: prompt, precision and settings; None: those the adapter was trained with, else the defaults.
        adapter: the folder that `run` wrote; None: only the base model is asked.
        items: answer only so many questions, spread over the file.
        progress: told a sentence now and then.

    Raises:
        BaseModelError: base model or adapter cannot be used, or do not belong together.
        DataError: the held-out pairs cannot be used.
        StorageError: the disk.
    """
    prepare_libraries()
    import torch

    from edgemed_training import qlora

    if (out / EVALUATION_NAME).exists():
        raise UsageError(f"{out} holds an evaluation already.", hint="Name a new folder with --out.")
    recipe = recipe or _recipe_of(adapter)
    folder = BaseModel.read(base)
    folder.check_fits(recipe.base)
    base_sha256 = folder.fingerprint()
    if adapter is not None:
        qlora.check_adapter(adapter, base_sha256=base_sha256, base=folder)
    chat_format = ChatFormat(qlora.load_tokenizer(folder), recipe)
    pairs, skipped = _fitting(_spread(read_pairs(data), items), chat_format, folder, data)
    _make_folder(out)
    try:
        systems, lines = _ask_models(recipe, folder, base_sha256, adapter, chat_format, pairs, progress)
    except torch.OutOfMemoryError as error:
        raise TrainingFailed(
            f"The GPU has too little memory: {' '.join(str(error).split())[:200]}",
            hint=f"Lower eval.batch_size (now {recipe.eval.batch_size}) or "
            f"eval.max_new_tokens (now {recipe.eval.max_new_tokens}).",
        ) from error
    training = data.with_name(TRAIN_NAME)
    if training.is_file() and training != data:
        answers = [
            GeneratedAnswer(text, 0, False, 0.0) for text in nearest_answers(pairs, read_pairs(training))
        ]
        found = _scored("nearest", answers, pairs, recipe)
        systems.append(found[0])
        lines += found[1]
    evaluation = Evaluation(
        edgemed_version=__version__,
        base_model=qlora.public_name(folder, recipe),
        base_sha256=base_sha256,
        adapter_sha256=file_sha256(adapter / qlora.ADAPTER_WEIGHTS_NAME) if adapter else None,
        heldout_sha256=file_sha256(data),
        train_sha256=file_sha256(training) if training.is_file() else None,
        items=len(pairs),
        skipped_items=skipped,
        settings=recipe.eval,
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        precision=qlora.precision(recipe),
        definitions=DEFINITIONS,
        systems=systems,
    )
    _write(out, evaluation, lines)
    return evaluation


def read_evaluation(path: Path) -> Evaluation:
    """Read evaluation.json.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Evaluation)
    except (OSError, msgspec.DecodeError) as error:
        raise DataError(
            f"{path} is not an evaluation: {error}.", hint="Make it with `edgemed-train eval`."
        ) from error


def recipe_for(named: str | None, adapter: Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe that was named, else the one an adapter was trained with, else the defaults.

    Raises:
        RecipeError: the recipe or an override is not possible.
        DataError: the adapter's training card cannot be read.
    """
    if named is not None:
        return load_recipe(named, overrides)
    return changed_recipe(_recipe_of(adapter), overrides)


def _recipe_of(adapter: Path | None) -> Recipe:
    if adapter is None or not (adapter / CARD_NAME).is_file():
        return Recipe()
    try:
        return msgspec.json.decode((adapter / CARD_NAME).read_bytes(), type=TrainingCard).recipe
    except (OSError, msgspec.DecodeError) as error:
        raise DataError(
            f"{adapter / CARD_NAME} is not a training card: {error}.", hint="Name the recipe with --recipe."
        ) from error


def _fitting(
    pairs: Sequence[QAPair], chat_format: ChatFormat, base: BaseModel, data: Path
) -> tuple[list[QAPair], int]:
    """Return the pairs whose prompt leaves room for an answer, and how many do not."""
    limit = base.context_length
    fitting = [
        pair
        for pair in pairs
        if limit is None or len(chat_format.token_ids(chat_format.frame(pair).prompt)) < limit
    ]
    if not fitting:
        raise DataError(
            f"No usable questions in {data} (0 of {len(pairs)}): none fits into the model's {limit} tokens.",
            hint="Use a model with a longer context.",
        )
    return fitting, len(pairs) - len(fitting)


def _spread(pairs: list[QAPair], count: int | None) -> list[QAPair]:
    if count is None or count >= len(pairs):
        return pairs
    return [pairs[index * len(pairs) // count] for index in range(count)]


def _ask_models(
    recipe: Recipe,
    base: BaseModel,
    base_sha256: str,
    adapter: Path | None,
    chat_format: ChatFormat,
    pairs: Sequence[QAPair],
    progress: Progress,
) -> tuple[list[SystemScores], list[AnswerLine]]:
    from edgemed_training import qlora

    model = qlora.load_base(base, recipe)
    systems, lines = [], []
    for system in ("base", "adapter"):
        if system == "adapter":
            if adapter is None:
                break
            model = qlora.load_adapter(model, adapter, base_sha256=base_sha256, base=base)
        answers = _ask(model, system, recipe, base, chat_format, pairs, progress)
        scores, answer_lines = _scored(system, answers, pairs, recipe)
        systems.append(scores)
        lines += answer_lines
    return systems[::-1], lines


def _ask(
    model: Any,
    system: str,
    recipe: Recipe,
    base: BaseModel,
    chat_format: ChatFormat,
    pairs: Sequence[QAPair],
    progress: Progress,
) -> list[GeneratedAnswer]:
    return generate_answers(
        model,
        chat_format,
        pairs,
        max_new_tokens=recipe.eval.max_new_tokens,
        batch_size=recipe.eval.batch_size,
        context_length=base.context_length,
        progress=lambda done, total: progress(f"{system}: {done} of {total} answers"),
    )


def _scored(
    system: SystemName | str, answers: Sequence[GeneratedAnswer], pairs: Sequence[QAPair], recipe: Recipe
) -> tuple[SystemScores, list[AnswerLine]]:
    from edgemed.metrics import token_f1

    is_model = system != "nearest"
    texts, references = [answer.text for answer in answers], [pair.answer for pair in pairs]
    ended = [answer.ended for answer in answers] if is_model else None
    scores = score_intervals(texts, references, ended, samples=recipe.eval.bootstrap_samples)
    seconds = [answer.batch_seconds / recipe.eval.batch_size for answer in answers]
    name: Any = system
    lines = [
        AnswerLine(
            id=pair.id,
            system=name,
            answer=answer.text,
            reference=pair.answer,
            ended=answer.ended if is_model else None,
            tokens=answer.tokens,
            token_f1=token_f1(answer.text, pair.answer),
        )
        for answer, pair in zip(answers, pairs, strict=True)
    ]
    return (
        SystemScores(
            system=name,
            scores=scores,
            seconds_per_answer=statistics.median(seconds) if is_model else None,
            generated_tokens=sum(answer.tokens for answer in answers),
        ),
        lines,
    )


def _make_folder(out: Path) -> None:
    """Make the folder, and write into it, before hours of answering."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / ANSWERS_NAME, b"")
        (out / ANSWERS_NAME).unlink()
    except OSError as error:
        raise _cannot_write(out, error) from error


def _cannot_write(out: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{out} cannot be written: {error.strerror or error}.", hint="Name another folder with --out."
    )


def _write(out: Path, evaluation: Evaluation, lines: Sequence[AnswerLine]) -> None:
    try:
        write_atomically(out / ANSWERS_NAME, b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
        encoded = msgspec.json.format(msgspec.json.encode(evaluation), indent=2)
        write_atomically(out / EVALUATION_NAME, encoded + b"\n")
    except OSError as error:
        raise _cannot_write(out, error) from error
