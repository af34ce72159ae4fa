"""The loop that both stages of the small model share: steps, log, checkpoints, and the folder at the end.

The same command after a kill goes on with the same losses to the last bit (on the same machine, with as many
threads). Called by `base_train` and `base_chat`.
"""

import contextlib
import hashlib
import math
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edgemed.errors import StorageError
from edgemed.operating_system import fsync_file, lock_file, write_atomically
from edgemed_training import base_checkpoints
from edgemed_training.base_network import Optimizers
from edgemed_training.base_recipe import StepsSection
from edgemed_training.checkpoints import RunIdentity, claim_folder, file_sha256
from edgemed_training.errors import TrainingError, TrainingFailed
from edgemed_training.records import SourceFacts

MODEL_NAME = "model"
LOG_NAME = "log.jsonl"
CARD_NAME = "training_card.json"
WEIGHTS_NAME = "model.safetensors"
FINAL_LOSS_STEPS = 32
LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors")
NOTHING_SHA256 = hashlib.sha256(b"").hexdigest()
_PROGRESS_STEPS = 20
Progress = Callable[[str], None]
Card = TypeVar("Card", bound=msgspec.Struct)


class LogEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One step, a line of log.jsonl."""

    step: int
    """From 1."""
    loss: float
    """Nats a token, of this step's rows before the update."""
    gradient_norm: float
    rate_share: float
    """What the learning rates were multiplied with."""


@dataclass(frozen=True)
class Work:
    """What the steps work on."""

    model: Any
    """Of transformers, in float32."""
    tokenizer: Any
    """A `tokenizers.Tokenizer`."""
    batch: Callable[[int], tuple[Any, Any]]
    """Step, from 0 → token ids and labels: int64 tensors [rows, tokens]; -100 is no label."""


@contextlib.contextmanager
def run_folder(out: Path, identity: RunIdentity) -> Iterator[None]:
    """Hold a run's folder while it is worked in.

    Raises:
        CheckpointDamaged: it holds another run.
        UsageError: it holds something else.
        StorageError: the disk; also for any OSError of the block.
    """
    from safetensors import SafetensorError

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with lock_file(out.with_name(f".{out.name}.lock")):
            claim_folder(out, identity)
            yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else "the disk is full, or fails"
        raise StorageError(
            f"The run in {out} cannot be written: {reason or error}.",
            hint="Free some space and give the same command again: it goes on from the last checkpoint.",
        ) from error


def last_checkpoint(out: Path, progress: Progress) -> Path | None:
    """Return the checkpoint to go on from, and say what is known of it."""
    checkpoint, sentences = base_checkpoints.find_checkpoint(out)
    for sentence in sentences:
        progress(sentence)
    if checkpoint:
        progress(f"Going on from {checkpoint.name}.")
    return checkpoint


class Loop:
    """One process's share of a run: from step 0 or a checkpoint to the end."""

    def __init__(
        self, work: Work, train: StepsSection, out: Path, progress: Progress, state: dict[str, Any], step: int
    ) -> None:
        """Put model and optimizers where the checkpoint left them.

        Args:
            work: on what.
            train: how.
            out: the run's folder.
            progress: told a sentence now and then.
            state: of the checkpoint; empty at step 0.
            step: steps done.
        """
        self._work, self._train, self._out, self._progress = work, train, out, progress
        self._step = step
        self.device = device()
        self._model = work.model.to(self.device)
        self._optimizers = Optimizers(self._model, train)
        if state:
            self._optimizers.load(state)
        self._log = _read_log(out / LOG_NAME, step)

    def run(self) -> float | None:
        """Take the steps that are left; return the mean loss of the last 32, None without log.

        Raises:
            TrainingFailed: a loss or gradient that is no number.
            StorageError: the disk.
        """
        train, first, started = self._train, self._step, time.monotonic()
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
        last = self._log[-FINAL_LOSS_STEPS:]
        return sum(entry.loss for entry in last) / len(last) if last else None

    def _one_step(self) -> LogEntry:
        import torch

        share = self._train.rate_share(self._step)
        ids, labels = (tensor.to(self.device) for tensor in self._work.batch(self._step))
        kind = self.device.partition(":")[0]
        with torch.autocast(kind, torch.bfloat16, enabled=self._train.precision == "bf16"):
            loss = self._model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._train.max_gradient_norm)
        entry = LogEntry(step=self._step + 1, loss=loss.item(), gradient_norm=norm.item(), rate_share=share)
        if not (math.isfinite(entry.loss) and math.isfinite(entry.gradient_norm)):
            raise TrainingFailed(
                f"At step {entry.step} the loss is {entry.loss}, the gradient's norm {entry.gradient_norm}: "
                "no step can be taken.",
                hint="Lower the learning rates of the recipe's [train], or set train.precision = "
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
            self._work.tokenizer,
            self._train.keep_checkpoints,
        )


def write_model(out: Path, save: Callable[[Path], None], card_of: Callable[[str], Card]) -> tuple[Path, Card]:
    """Write `out/model` whole or not at all, then the card beside it; return the folder and the card.

    Args:
        out: the run's folder.
        save: writes the model's files into a folder that it makes.
        card_of: SHA-256 of the weights → the card.
    """
    written = out / f".{MODEL_NAME}.partial"
    shutil.rmtree(written, ignore_errors=True)
    save(written)
    card = card_of(file_sha256(written / WEIGHTS_NAME))
    encoded = msgspec.json.format(msgspec.json.encode(card), indent=2) + b"\n"
    (written / CARD_NAME).write_bytes(encoded)
    model = out / MODEL_NAME
    shutil.rmtree(model, ignore_errors=True)
    written.rename(model)
    write_atomically(out / CARD_NAME, encoded)
    return model, card


def read_card(path: Path, kind: type[Card]) -> Card:
    """Read a finished run's card.

    Raises:
        TrainingError: it is none of this kind.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except msgspec.DecodeError as error:
        raise TrainingError(
            f"{path} is not a training card: {error}.", hint="Remove it and give the same command again."
        ) from error


def library_versions() -> dict[str, str]:
    """Return name → version."""
    return {name: metadata.version(name) for name in LIBRARIES}


def source_words(sources: list[SourceFacts]) -> list[dict[str, str]]:
    """Return name, source and licence of each."""
    return [{"name": source.name, "source": source.source, "license": source.license} for source in sources]


def parameter_count(model: Any) -> int:
    """Return how many numbers are trained; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def device() -> str:
    """Return where the steps are taken: cuda where there is one, else cpu."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def device_name(name: str) -> str:
    """Return the device in words."""
    import torch

    return torch.cuda.get_device_name() if name == "cuda" else f"CPU ({platform.machine()})"


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
