"""Checkpoints of a base model's training: weights, optimizer state and tokenizer, in safetensors, sealed.

Sealed and told apart as `checkpoints` does it; what must stand in one is another list of files.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from edgemed.errors import StorageError
from edgemed_training.checkpoints import SEAL_NAME, file_sha256, seal

STATE_NAME = "state.safetensors"
TOKENIZER_NAME = "tokenizer.json"
_PREFIX = "checkpoint-"


class _SealedFile(msgspec.Struct, frozen=True):
    size_bytes: int
    sha256: str


class _Seal(msgspec.Struct, frozen=True):
    files: dict[str, _SealedFile]


def save_checkpoint(out: Path, step: int, state: Mapping[str, Any], tokenizer: Any, keep: int) -> None:
    """Write and seal `checkpoint-STEP`, then remove all but the last `keep`.

    Args:
        out: the run's folder.
        step: steps done.
        state: name → tensor: everything that the next step depends on.
        tokenizer: a `tokenizers.Tokenizer`.
        keep: checkpoints that stay.

    Raises:
        StorageError: the disk.
    """
    from safetensors.torch import save

    folder = out / f"{_PREFIX}{step}"
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / STATE_NAME).write_bytes(save({name: tensor.contiguous() for name, tensor in state.items()}))
        (folder / TOKENIZER_NAME).write_text(tokenizer.to_str(), encoding="utf-8", newline="\n")
    except OSError as error:
        raise StorageError(
            f"The checkpoint {folder} cannot be written: {error.strerror}.",
            hint="Free some space and give the same command again: it goes on from the checkpoint before.",
        ) from error
    seal(folder)
    for old in _newest_first(out)[keep:]:
        shutil.rmtree(old, ignore_errors=True)


def find_checkpoint(out: Path) -> tuple[Path | None, list[str]]:
    """Return the last sound checkpoint, and a sentence for each damaged one, which is set aside.

    Raises:
        StorageError: it cannot be renamed, or read.
    """
    sentences: list[str] = []
    for checkpoint in _newest_first(out):
        problem = _damage(checkpoint)
        if problem is None:
            return checkpoint, sentences
        aside = _set_aside(checkpoint)
        sentences.append(f"{checkpoint.name} is damaged ({problem}) and was set aside as {aside.name}.")
    if sentences:
        sentences.append("No sound checkpoint is left: the run begins again.")
    return None, sentences


def load_checkpoint(checkpoint: Path) -> tuple[int, dict[str, Any], Any]:
    """Return a sound checkpoint's step, its state (name → tensor) and its tokenizer."""
    from safetensors.torch import load
    from tokenizers import Tokenizer

    state = load((checkpoint / STATE_NAME).read_bytes())
    return _step(checkpoint), state, Tokenizer.from_file(str(checkpoint / TOKENIZER_NAME))


def _damage(checkpoint: Path) -> str | None:
    try:
        sealed = msgspec.json.decode((checkpoint / SEAL_NAME).read_bytes(), type=_Seal).files
    except FileNotFoundError:
        return "it was not finished"
    except (OSError, msgspec.DecodeError) as error:
        return f"{SEAL_NAME} cannot be read: {error}"
    for name in (STATE_NAME, TOKENIZER_NAME):
        path = checkpoint / name
        if name not in sealed or not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != sealed[name].size_bytes:
            return f"{name} has {path.stat().st_size} bytes, not {sealed[name].size_bytes}"
        if file_sha256(path) != sealed[name].sha256:
            return f"{name} has other bytes than were written"
    return None


def _newest_first(out: Path) -> list[Path]:
    found = [path for path in out.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdecimal()]
    return sorted(found, key=_step, reverse=True)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(_PREFIX))


def _set_aside(checkpoint: Path) -> Path:
    number = 1
    target = checkpoint.with_name(f"damaged-{checkpoint.name}")
    while target.exists():
        number += 1
        target = checkpoint.with_name(f"damaged-{checkpoint.name}-{number}")
    try:
        return checkpoint.rename(target)
    except OSError as error:
        raise StorageError(
            f"The damaged {checkpoint} cannot be renamed: {error.strerror}.", hint="Move it away yourself."
        ) from error
