"""A chat model from a small base: AdamW over all weights, a folder with chat template. `edgemed-train base`.

The recipe has `stage = "chat"`; the base is one that `edgemed-train base` made, or one with its tokenizer's
control tokens.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgemed import __version__
from edgemed_training import base_checkpoints, base_loop
from edgemed_training.base_chat_data import ConversationRows, Conversations, choose_conversations
from edgemed_training.base_data import read_rows
from edgemed_training.base_loop import CARD_NAME, LIBRARIES, MODEL_NAME, NOTHING_SHA256, Progress
from edgemed_training.base_model import BaseModel
from edgemed_training.base_network import load_model, save_model
from edgemed_training.base_recipe import ChatRecipe
from edgemed_training.base_tokenizer import read_tokenizer
from edgemed_training.checkpoints import RunIdentity
from edgemed_training.errors import BaseModelError
from edgemed_training.libraries import prepare_libraries
from edgemed_training.records import SourceFacts


class ChatCard(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One finished chat model: what it was made of, and how."""

    schema_version: Literal[1] = 1
    edgemed_version: str
    libraries: dict[str, str]
    device: str
    recipe: ChatRecipe
    identity: RunIdentity
    """Its held-out hash is that of nothing: no pair was held out."""
    data_sources: list[dict[str, str]]
    """Name, source and licence of each, from the dataset card."""
    conversations: int
    """That could be drawn; a short run does not come to all of them."""
    cut_answers: int
    left_out: dict[str, int]
    """Reason → pairs that were not used."""
    parameters: int
    steps: int
    trained_tokens: int
    """With frames and empty places at the end of rows."""
    final_loss: float | None
    """Mean of the last 32 steps, in nats a token of the answers; None without log. Nothing is held out."""
    seconds: float
    """Of this process; less than the whole where the run was resumed."""
    weights_sha256: str


@dataclass(frozen=True)
class ChatReport:
    """What a run left behind."""

    model: Path
    card: ChatCard
    resumed_from: str | None
    """The checkpoint's name."""


@dataclass(frozen=True)
class _Data:
    conversations: Conversations
    sources: list[SourceFacts]


def train_chat(
    recipe: ChatRecipe, *, base: Path, data: Path, out: Path, progress: Progress = lambda sentence: None
) -> ChatReport:
    """Make a chat model of a base, or go on with a run that was stopped.

    Args:
        recipe: which pairs, system prompts and schedule.
        base: the base model's folder; its weights are taken as float32, whatever they are stored as.
        data: the folder that `prepare` wrote, or a file of JSON Lines with question and answer.
        out: the run's folder; the model is written to `out/model`.
        progress: told a sentence now and then.

    Raises:
        BaseModelError: the base cannot be used, or has no control tokens for the frames.
        DataError: the data cannot be read, or hold no answer to learn from.
        CheckpointDamaged: `out` belongs to another run.
        TrainingFailed: a loss or gradient that is no number.
        StorageError: the disk.
    """
    prepare_libraries(*LIBRARIES)
    model_folder, tokenizer = BaseModel.read(base), read_tokenizer(base)
    _check_room(model_folder, recipe)
    rows = read_rows(data)
    identity = RunIdentity(
        recipe_sha256=recipe.sha256(),
        base_sha256=model_folder.fingerprint(),
        train_sha256=rows.sha256,
        heldout_sha256=NOTHING_SHA256,
    )
    found = _Data(choose_conversations(rows.rows, recipe.chat), rows.sources)
    with base_loop.run_folder(out, identity):
        if (out / CARD_NAME).is_file():
            progress(f"{out} holds the finished model already.")
            return ChatReport(out / MODEL_NAME, base_loop.read_card(out / CARD_NAME, ChatCard), None)
        return _train(recipe, base, tokenizer, found, identity, out, progress)


def _check_room(base: BaseModel, recipe: ChatRecipe) -> None:
    longest, wanted = base.context_length, recipe.train.window_tokens
    if longest is not None and wanted > longest:
        raise BaseModelError(
            f"{base.folder} has a context length of {longest} tokens: too short for rows of {wanted}.",
            hint=f"Set train.window_tokens to at most {longest}.",
        )


def _train(
    recipe: ChatRecipe,
    base: Path,
    tokenizer: Any,
    data: _Data,
    identity: RunIdentity,
    out: Path,
    progress: Progress,
) -> ChatReport:
    started = time.monotonic()
    train, checkpoint = recipe.train, base_loop.last_checkpoint(out, progress)
    step, state = base_checkpoints.load_checkpoint(checkpoint)[:2] if checkpoint else (0, {})
    model = load_model(base)
    rows = ConversationRows(data.conversations, tokenizer, recipe.chat, train)
    progress(f"{len(data.conversations.turns)} conversations, {data.conversations.cut} answers cut.")
    loop = base_loop.Loop(base_loop.Work(model, tokenizer, rows.batch), train, out, progress, state, step)
    final_loss = loop.run()
    seconds = time.monotonic() - started

    def card_of(weights_sha256: str) -> ChatCard:
        return ChatCard(
            edgemed_version=__version__,
            libraries=base_loop.library_versions(),
            device=base_loop.device_name(loop.device),
            recipe=recipe,
            identity=identity,
            data_sources=base_loop.source_words(data.sources),
            conversations=len(data.conversations.turns),
            cut_answers=data.conversations.cut,
            left_out=data.conversations.left_out,
            parameters=base_loop.parameter_count(model),
            steps=train.steps,
            trained_tokens=train.steps * train.batch_tokens,
            final_loss=final_loss,
            seconds=seconds,
            weights_sha256=weights_sha256,
        )

    written, card = base_loop.write_model(
        out, lambda folder: save_model(model, tokenizer, folder, for_chat=True), card_of
    )
    return ChatReport(written, card, checkpoint.name if checkpoint else None)
