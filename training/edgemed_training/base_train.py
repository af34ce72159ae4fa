"""A base model from nothing but text: tokenizer, weights, and a card that says how. `edgemed-train base`.

Muon for the matrices, AdamW for the rest; the same command after a kill goes on with the same losses to the
last bit (on the same machine, with as many threads).
"""

import hashlib
import math
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgemed import __version__
from edgemed.errors import StorageError
from edgemed.operating_system import fsync_file, lock_file, write_atomically
from edgemed_training import base_checkpoints, base_tokenizer
from edgemed_training.base_data import Documents, Windows, encode_documents, read_documents
from edgemed_training.base_network import Optimizers, build_model, save_model
from edgemed_training.base_recipe import BaseRecipe
from edgemed_training.checkpoints import RunIdentity, claim_folder, file_sha256
from edgemed_training.errors import TrainingError, TrainingFailed
from edgemed_training.libraries import prepare_libraries

MODEL_NAME = "model"
LOG_NAME = "log.jsonl"
CARD_NAME = "training_card.json"
WEIGHTS_NAME = "model.safetensors"
FINAL_LOSS_STEPS = 32
_PROGRESS_STEPS = 20
_NOTHING_SHA256 = hashlib.sha256(b"").hexdigest()
_LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors")
Progress = Callable[[str], None]


class LogEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One step, a line of log.jsonl."""

    step: int
    """From 1."""
    loss: float
    """Nats a token, of this step's windows before the update."""
    gradient_norm: float
    rate_share: float
    """What both learning rates were multiplied with."""


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
    prepare_libraries(*_LIBRARIES)
    from safetensors import SafetensorError

    documents = read_documents(data)
    identity = RunIdentity(
        recipe_sha256=recipe.sha256(),
        base_sha256=_NOTHING_SHA256,
        train_sha256=documents.sha256,
        heldout_sha256=_NOTHING_SHA256,
    )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with lock_file(out.with_name(f".{out.name}.lock")):
            claim_folder(out, identity)
            if (out / CARD_NAME).is_file():
                progress(f"{out} holds the finished model already.")
                return BaseReport(out / MODEL_NAME, _read_card(out / CARD_NAME), None)
            return _Run(recipe, documents, identity, out, progress).finish()
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else "the disk is full, or fails"
        raise StorageError(
            f"The run in {out} cannot be written: {reason or error}.",
            hint="Free some space and give the same command again: it goes on from the last checkpoint.",
        ) from error


class _Run:
    """One process's share of a run: built at step 0 or from a checkpoint, then stepped to the end."""

    def __init__(
        self, recipe: BaseRecipe, documents: Documents, identity: RunIdentity, out: Path, progress: Progress
    ) -> None:
        self._recipe, self._documents, self._identity = recipe, documents, identity
        self._out, self._progress = out, progress
        self._started = time.monotonic()
        checkpoint, sentences = base_checkpoints.find_checkpoint(out)
        for sentence in sentences:
            progress(sentence)
        self._resumed_from = checkpoint.name if checkpoint else None
        self._step, state, self._tokenizer = self._begin(checkpoint)
        self._tokens = encode_documents(documents, self._tokenizer, recipe.train.seed)
        self._windows = Windows(
            self._tokens,
            window_tokens=recipe.train.window_tokens,
            batch_rows=recipe.train.batch_rows,
            seed=recipe.train.seed,
        )
        self._device = _device()
        self._model = build_model(recipe).to(self._device)
        self._optimizers = Optimizers(self._model, recipe)
        if state:
            self._optimizers.load(state)
        self._log = _read_log(out / LOG_NAME, self._step)

    def _begin(self, checkpoint: Path | None) -> tuple[int, dict[str, Any], Any]:
        if checkpoint is not None:
            self._progress(f"Going on from {checkpoint.name}.")
            return base_checkpoints.load_checkpoint(checkpoint)
        size = self._recipe.tokenizer.vocabulary_size
        self._progress(f"Training a tokenizer of {size} tokens on {len(self._documents.texts)} documents.")
        return 0, {}, base_tokenizer.train_tokenizer(self._documents.texts, size)

    def finish(self) -> BaseReport:
        """Take the steps that are left, and write model and card."""
        self._train()
        seconds = time.monotonic() - self._started
        written = self._out / f".{MODEL_NAME}.partial"
        shutil.rmtree(written, ignore_errors=True)
        save_model(self._model, self._tokenizer, self._recipe, written)
        card = self._card(seconds, file_sha256(written / WEIGHTS_NAME))
        encoded = msgspec.json.format(msgspec.json.encode(card), indent=2) + b"\n"
        (written / CARD_NAME).write_bytes(encoded)
        model = self._out / MODEL_NAME
        shutil.rmtree(model, ignore_errors=True)
        written.rename(model)
        write_atomically(self._out / CARD_NAME, encoded)
        return BaseReport(model, card, self._resumed_from)

    def _train(self) -> None:
        train, first, started = self._recipe.train, self._step, time.monotonic()
        content = b"".join(msgspec.json.encode(entry) + b"\n" for entry in self._log)
        write_atomically(self._out / LOG_NAME, content)
        with (self._out / LOG_NAME).open("ab") as log:
            while self._step < train.steps:
                entry = self._one_step()
                self._log.append(entry)
                log.write(msgspec.json.encode(entry) + b"\n")
                log.flush()
                if entry.step in (1, train.steps) or entry.step % _PROGRESS_STEPS == 0:
                    done = (entry.step - first) * train.batch_tokens
                    rate = done / (time.monotonic() - started)
                    self._progress(
                        f"step {entry.step} of {train.steps}: loss {entry.loss:.3f}, {rate:.0f} tokens/s"
                    )
                if entry.step % train.save_every_steps == 0 or entry.step == train.steps:
                    fsync_file(log.fileno())  # no step that a checkpoint holds may be missing in the log
                    self._save()

    def _one_step(self) -> LogEntry:
        import torch

        train, share = self._recipe.train, self._recipe.train.rate_share(self._step)
        rows = self._windows.batch(self._step).to(self._device)
        kind = self._device.partition(":")[0]
        with torch.autocast(kind, torch.bfloat16, enabled=train.precision == "bf16"):
            loss = self._model(input_ids=rows, labels=rows, use_cache=False).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._model.parameters(), train.max_gradient_norm)
        entry = LogEntry(step=self._step + 1, loss=loss.item(), gradient_norm=norm.item(), rate_share=share)
        if not (math.isfinite(entry.loss) and math.isfinite(entry.gradient_norm)):
            raise TrainingFailed(
                f"At step {entry.step} the loss is {entry.loss}, the gradient's norm {entry.gradient_norm}: "
                "no step can be taken.",
                hint="Lower train.muon_learning_rate and train.adamw_learning_rate, or set train.precision = "
                '"fp32", and name a new folder with --out.',
            )
        self._optimizers.step(share)
        self._model.zero_grad(set_to_none=True)
        self._step += 1
        return entry

    def _save(self) -> None:
        base_checkpoints.save_checkpoint(
            self._out,
            self._step,
            self._optimizers.state(),
            self._tokenizer,
            self._recipe.train.keep_checkpoints,
        )

    def _card(self, seconds: float, weights_sha256: str) -> BaseCard:
        train, last = self._recipe.train, self._log[-FINAL_LOSS_STEPS:]
        windows = train.steps * train.batch_rows
        return BaseCard(
            edgemed_version=__version__,
            libraries={name: metadata.version(name) for name in _LIBRARIES},
            device=_device_name(self._device),
            recipe=self._recipe,
            identity=self._identity,
            data_sources=[
                {"name": source.name, "source": source.source, "license": source.license}
                for source in self._documents.sources
            ],
            documents=len(self._documents.texts),
            data_tokens=len(self._tokens),
            parameters=sum(parameter.numel() for parameter in self._model.parameters()),
            steps=train.steps,
            trained_tokens=train.steps * train.batch_tokens,
            passes=windows / self._windows.per_pass,
            final_loss=sum(entry.loss for entry in last) / len(last) if last else None,
            seconds=seconds,
            weights_sha256=weights_sha256,
        )


def _read_log(path: Path, steps: int) -> list[LogEntry]:
    """Return the entries of the steps that a checkpoint holds; later ones are taken again."""
    if not path.is_file():
        return []
    entries = []
    for line in path.read_bytes().splitlines():
        try:
            entries.append(msgspec.json.decode(line, type=LogEntry))
        except msgspec.DecodeError:
            break  # The kill cut this line.
    return [entry for entry in entries if entry.step <= steps]


def _read_card(path: Path) -> BaseCard:
    try:
        return msgspec.json.decode(path.read_bytes(), type=BaseCard)
    except msgspec.DecodeError as error:
        raise TrainingError(
            f"{path} is not a training card: {error}.", hint="Remove it and give the same command again."
        ) from error


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else f"CPU ({platform.machine()})"
