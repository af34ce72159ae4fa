"""A base model from nothing but text: tokenizer, weights, and a card that says how. `edgemed-train base`.

Muon for the matrices, AdamW for the rest.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgemed import __version__
from edgemed_training import base_checkpoints, base_loop, base_tokenizer
from edgemed_training.base_data import Documents, Windows, encode_documents, read_documents
from edgemed_training.base_loop import CARD_NAME, LIBRARIES, MODEL_NAME, NOTHING_SHA256, Progress
from edgemed_training.base_network import build_model, save_model
from edgemed_training.base_recipe import BaseRecipe
from edgemed_training.checkpoints import RunIdentity
from edgemed_training.libraries import prepare_libraries


class BaseCard(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One finished base model: what it was made of, and how."""

    schema_version: Literal[1] = 1
    edgemed_version: str
    libraries: dict[str, str]
    device: str
    recipe: BaseRecipe
    identity: RunIdentity
    """Its base and held-out hashes are those of nothing: no model came before, no pair was held out."""
    data_sources: list[dict[str, str]]
    """Name, source and licence of each, from the dataset card."""
    documents: int
    data_tokens: int
    parameters: int
    steps: int
    trained_tokens: int
    passes: float
    """Over the data."""
    final_loss: float | None
    """Mean training loss of the last 32 steps, in nats a token; None without log. Nothing is held out."""
    seconds: float
    """Of this process; less than the whole where the run was resumed."""
    weights_sha256: str


@dataclass(frozen=True)
class BaseReport:
    """What a run left behind."""

    model: Path
    card: BaseCard
    resumed_from: str | None
    """The checkpoint's name."""


def train_base(
    recipe: BaseRecipe, *, data: Path, out: Path, progress: Progress = lambda sentence: None
) -> BaseReport:
    """Train a base model from scratch, or go on with a run that was stopped.

    Args:
        recipe: shape, tokenizer and schedule.
        data: the folder that `prepare` wrote, or a file of JSON Lines with question and answer.
        out: the run's folder; the model is written to `out/model`.
        progress: told a sentence now and then.

    Raises:
        DataError: the data cannot be read, or are too little for the vocabulary or one window.
        CheckpointDamaged: `out` belongs to another run.
        TrainingFailed: a loss or gradient that is no number.
        StorageError: the disk.
    """
    prepare_libraries(*LIBRARIES)
    documents = read_documents(data)
    identity = RunIdentity(
        recipe_sha256=recipe.sha256(),
        base_sha256=NOTHING_SHA256,
        train_sha256=documents.sha256,
        heldout_sha256=NOTHING_SHA256,
    )
    with base_loop.run_folder(out, identity):
        if (out / CARD_NAME).is_file():
            progress(f"{out} holds the finished model already.")
            return BaseReport(out / MODEL_NAME, base_loop.read_card(out / CARD_NAME, BaseCard), None)
        return _train(recipe, documents, identity, out, progress)


def _train(
    recipe: BaseRecipe, documents: Documents, identity: RunIdentity, out: Path, progress: Progress
) -> BaseReport:
    started = time.monotonic()
    train, checkpoint = recipe.train, base_loop.last_checkpoint(out, progress)
    step, state, tokenizer = _begin(recipe, documents, checkpoint, progress)
    tokens = encode_documents(documents, tokenizer, train.seed)
    windows = Windows(tokens, window_tokens=train.window_tokens, batch_rows=train.batch_rows, seed=train.seed)
    model = build_model(recipe)

    def batch(number: int) -> tuple[Any, Any]:
        rows = windows.batch(number)
        return rows, rows

    loop = base_loop.Loop(base_loop.Work(model, tokenizer, batch), train, out, progress, state, step)
    final_loss = loop.run()
    seconds = time.monotonic() - started

    def card_of(weights_sha256: str) -> BaseCard:
        return BaseCard(
            edgemed_version=__version__,
            libraries=base_loop.library_versions(),
            device=base_loop.device_name(loop.device),
            recipe=recipe,
            identity=identity,
            data_sources=base_loop.source_words(documents.sources),
            documents=len(documents.texts),
            data_tokens=len(tokens),
            parameters=base_loop.parameter_count(model),
            steps=train.steps,
            trained_tokens=train.steps * train.batch_tokens,
            passes=train.steps * train.batch_rows / windows.per_pass,
            final_loss=final_loss,
            seconds=seconds,
            weights_sha256=weights_sha256,
        )

    written, card = base_loop.write_model(out, lambda folder: save_model(model, tokenizer, folder), card_of)
    return BaseReport(written, card, checkpoint.name if checkpoint else None)


def _begin(
    recipe: BaseRecipe, documents: Documents, checkpoint: Path | None, progress: Progress
) -> tuple[int, dict[str, Any], Any]:
    """Return steps done, state and tokenizer."""
    if checkpoint is not None:
        return base_checkpoints.load_checkpoint(checkpoint)
    size = recipe.tokenizer.vocabulary_size
    progress(f"Training a tokenizer of {size} tokens on {len(documents.texts)} documents.")
    return 0, {}, base_tokenizer.train_tokenizer(documents.texts, size)
