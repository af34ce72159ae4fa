"""Checkpoints of a base model's training: weights, optimizer state and tokenizer, in safetensors, sealed.

Sealed and looked at by `checkpoints`; what must stand in one is another list of files.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgemed.errors import StorageError
from edgemed_training import checkpoints

STATE_NAME = "state.safetensors"
TOKENIZER_NAME = "tokenizer.json"


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

    folder = out / f"checkpoint-{step}"
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
    checkpoints.seal(folder)
    for old in checkpoints.checkpoints_of(out)[keep:]:
        shutil.rmtree(old, ignore_errors=True)


def find_checkpoint(out: Path) -> tuple[Path | None, list[str]]:
    """Return the last sound checkpoint, and a sentence for each damaged one, which is set aside.

    Raises:
        StorageError: it cannot be renamed.
    """
    return checkpoints.find_checkpoint(out, needed=(STATE_NAME, TOKENIZER_NAME))


def load_checkpoint(checkpoint: Path) -> tuple[int, dict[str, Any], Any]:
    """Return a sound checkpoint's step, its state (name → tensor) and its tokenizer."""
    from safetensors.torch import load
    from tokenizers import Tokenizer

    state = load((checkpoint / STATE_NAME).read_bytes())
    return (
        checkpoints.checkpoint_step(checkpoint),
        state,
        Tokenizer.from_file(str(checkpoint / TOKENIZER_NAME)),
    )
