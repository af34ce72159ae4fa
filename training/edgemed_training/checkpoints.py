"""Checkpoints that can be trusted: sealed when they are whole, set aside when they are not.

A run's folder belongs to one recipe, one base model and one data set (`run.json`); the same command after a
kill goes on from the last sound checkpoint.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from edgemed.errors import StorageError, UsageError
from edgemed.operating_system import fsync_file, fsync_folder, write_atomically
from edgemed_training.errors import CheckpointDamaged

RUN_NAME = "run.json"
SEAL_NAME = "sealed.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
ADAPTER_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "trainer_state.json",
)
"""What an adapter's training needs to go on, beside what else was sealed."""
_READ_BYTES = 2**20
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class RunIdentity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What must be the same for a run to go on."""

    schema_version: Literal[1] = 1
    recipe_sha256: Sha256
    base_sha256: Sha256
    train_sha256: Sha256
    heldout_sha256: Sha256
    processes: Annotated[int, msgspec.Meta(ge=1)] = 1
    """How many GPUs or CPU processes share the work."""


class _SealedFile(msgspec.Struct, frozen=True):
    size_bytes: int
    sha256: Sha256


class _Seal(msgspec.Struct, frozen=True):
    files: dict[str, _SealedFile]


_WORDS = {
    "recipe_sha256": "recipe",
    "base_sha256": "base model",
    "train_sha256": "training data",
    "heldout_sha256": "held-out data",
    "processes": "number of processes",
}


def claim_folder(folder: Path, identity: RunIdentity) -> None:
    """Make a folder this run's own, or see that it is; one without a checkpoint goes to whoever asks.

    Raises:
        UsageError: it holds something else.
        CheckpointDamaged: it holds a run of another recipe, base model or data set.
        StorageError: it cannot be written.
    """
    path = folder / RUN_NAME
    try:
        # A run that was refused before its first checkpoint left nothing to protect.
        if path.exists() and any(child.is_dir() for child in folder.iterdir()):
            return _compare(path, identity)
        if not path.exists() and folder.exists() and any(folder.iterdir()):
            raise UsageError(
                f"{folder} is not empty, and holds no training run.", hint="Name a new folder with --out."
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, msgspec.json.format(msgspec.json.encode(identity), indent=2) + b"\n")
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be written: {error.strerror}.", hint="Name another folder with --out."
        ) from error
    return None


def find_checkpoint(folder: Path, *, needed: Sequence[str] = ADAPTER_FILES) -> tuple[Path | None, list[str]]:
    """Return the last sound checkpoint, and a sentence for each damaged one, which is set aside.

    A damaged `checkpoint-12` is renamed to `damaged-checkpoint-12`.

    Args:
        folder: the run's.
        needed: the files without which a checkpoint is of no use.

    Raises:
        StorageError: it cannot be renamed.
    """
    sentences: list[str] = []
    for checkpoint in checkpoints_of(folder):
        problem = _damage(checkpoint, needed)
        if problem is None:
            return checkpoint, sentences
        aside = _set_aside(checkpoint)
        sentences.append(f"{checkpoint.name} is damaged ({problem}) and was set aside as {aside.name}.")
    if sentences:
        sentences.append("No sound checkpoint is left: the run begins again.")
    return None, sentences


def seal(checkpoint: Path) -> None:
    """Bring a finished checkpoint to the disk and write what it consists of.

    Raises:
        StorageError: the disk fails.
    """
    try:
        files = {}
        for path in sorted(checkpoint.rglob("*")):
            if path.is_file() and path.name != SEAL_NAME:
                with path.open("rb+") as file:
                    fsync_file(file.fileno())
                name = path.relative_to(checkpoint).as_posix()
                files[name] = _SealedFile(path.stat().st_size, _sha256(path))
        fsync_folder(checkpoint)
        write_atomically(checkpoint / SEAL_NAME, msgspec.json.encode(_Seal(files)))
    except OSError as error:
        raise StorageError(
            f"The checkpoint {checkpoint} cannot be written: {error.strerror}.",
            hint="Free some space and give the same command again: it goes on from the checkpoint before.",
        ) from error


def checkpoints_of(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, sound or not, the newest first."""
    found = [
        path for path in folder.glob("checkpoint-*") if path.is_dir() and _CHECKPOINT.fullmatch(path.name)
    ]
    return sorted(found, key=checkpoint_step, reverse=True)


def checkpoint_step(checkpoint: Path) -> int:
    """Return how many steps a checkpoint was written after."""
    return int(checkpoint.name.rpartition("-")[2])


def _damage(checkpoint: Path, needed: Sequence[str]) -> str | None:
    """Say what is wrong with a checkpoint, or None."""
    try:
        sealed = msgspec.json.decode((checkpoint / SEAL_NAME).read_bytes(), type=_Seal).files
    except FileNotFoundError:
        return "it was not finished"
    except (OSError, msgspec.DecodeError) as error:
        return f"{SEAL_NAME} cannot be read: {error}"
    for name in (*needed, *sealed):
        path = checkpoint / name
        if name not in sealed or not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != sealed[name].size_bytes:
            return f"{name} has {path.stat().st_size} bytes, not {sealed[name].size_bytes}"
    try:
        changed = next(
            (name for name, file in sealed.items() if _sha256(checkpoint / name) != file.sha256), None
        )
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    return f"{changed} has other bytes than were written" if changed else None


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        StorageError: it cannot be read.
    """
    try:
        return _sha256(path)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}.") from error


def _compare(path: Path, identity: RunIdentity) -> None:
    try:
        found = msgspec.json.decode(path.read_bytes(), type=RunIdentity)
    except (OSError, msgspec.DecodeError) as error:
        raise CheckpointDamaged(
            f"{path} does not say which run lies here: {error}.", hint="Name a new folder with --out."
        ) from error
    theirs, ours = msgspec.structs.asdict(found), msgspec.structs.asdict(identity)
    if others := [word for field, word in _WORDS.items() if theirs[field] != ours[field]]:
        raise CheckpointDamaged(
            f"{path.parent} holds a run with another {' and another '.join(others)}.",
            hint="Go on with what it was begun with, or name a new folder with --out.",
        )


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


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_READ_BYTES):
            digest.update(data)
    return digest.hexdigest()
