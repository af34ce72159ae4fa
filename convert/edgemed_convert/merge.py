"""Merge: a base model and its adapters become one Hugging Face folder, written in a stream.

Only a block of rows is in memory at any time; every number is rounded once, when it is written, and looked at
for NaN and Inf. The folder appears under its name when all of it is on the disk.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgemed_convert.adapter import MergedCheckpoint
from edgemed_convert.checkpoint import (
    CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    HEAD,
    INDEX_NAME,
    TOKENIZER_FILES,
    WEIGHTS_NAME,
    Checkpoint,
)
from edgemed_convert.errors import CheckpointError
from edgemed_convert.output import Progress, check_free_space, new_folder, no_progress
from edgemed_convert.safetensors_file import (
    StoredTensor,
    Tensor,
    Weights,
    all_finite,
    encode_header,
    from_float32,
    row_blocks,
    stored_bytes,
)

SHARD_BYTES = 5 * 10**9
"""What Hugging Face's own tools put into one file at most; a larger tensor gets a file of its own."""
TypeName = Literal["F32", "F16", "BF16"]

_BLOCK_BYTES = 16 * 2**20
ROOM_FOR_OTHER_FILES = 64 * 2**20
"""What tokenizer, configs and notes need at most beside the weights."""
_CONFIG_TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class MergeReport:
    """What a merge wrote."""

    folder: Path
    weight_files: tuple[str, ...]
    tensors: int
    adapted: int
    """How many of the tensors an adapter changed."""
    size_bytes: int
    """Of the weights."""
    untied: bool
    """The output head has become a matrix of its own."""


@dataclass(frozen=True)
class _Entry:
    name: str
    tensor: Tensor
    type_name: str

    @property
    def size_bytes(self) -> int:
        return stored_bytes(self.type_name, self.tensor.shape)


def write_merged(
    model: Checkpoint | MergedCheckpoint,
    target: Path,
    *,
    type_name: TypeName | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = no_progress,
) -> MergeReport:
    """Write a model with its adapters merged as a Hugging Face folder.

    Args:
        model: a base model, or one with adapters applied.
        target: the new folder.
        type_name: of all weights; None keeps each weight's type in the base model.
        shard_bytes: how large one weights file may become.
        progress: shown while bytes are written.

    Raises:
        CheckpointError: a weight has NaN or Inf, or is too large for F16.
        UsageError: the target exists.
        StorageError: the disk is too small, full, or read-only.
    """
    size_bytes = weights_bytes(model.weights, type_name)
    check_free_space(target.parent, size_bytes + ROOM_FOR_OTHER_FILES)
    with new_folder(target) as folder:
        written = write_weights(
            model.weights, folder, type_name=type_name, shard_bytes=shard_bytes, progress=progress
        )
        _write_other_files(model, folder, type_name)
    base = _base(model).weights
    return MergeReport(
        folder=target,
        weight_files=written,
        tensors=len(model.weights),
        adapted=sum(tensor is not base.get(name) for name, tensor in model.weights.items()),
        size_bytes=size_bytes,
        untied=HEAD in model.weights and HEAD not in _base(model).weights,
    )


def weights_bytes(weights: Weights, type_name: TypeName | None = None) -> int:
    """Return how many bytes weights take when they are written, headers aside."""
    return sum(stored_bytes(type_name or tensor.type_name, tensor.shape) for tensor in weights.values())


def write_weights(
    weights: Weights,
    folder: Path,
    *,
    type_name: TypeName | None = None,
    shard_bytes: int = SHARD_BYTES,
    stage: str = "merge",
    progress: Progress = no_progress,
) -> tuple[str, ...]:
    """Write weights in a stream into a folder that exists, with an index where they need several files.

    Args:
        weights: in the order in which they are written.
        folder: a new one.
        type_name: of all weights; None keeps each weight's own.
        shard_bytes: how large one weights file may become.
        stage: what the progress is called.
        progress: shown while bytes are written.

    Returns:
        The names of the weights files.

    Raises:
        CheckpointError: a weight has NaN or Inf, or is too large for F16.
    """
    entries = [_Entry(name, tensor, type_name or tensor.type_name) for name, tensor in weights.items()]
    size_bytes, done = weights_bytes(weights, type_name), 0
    shards = _shards(entries, shard_bytes)
    for name, shard in shards.items():
        for count in _write_shard(folder / name, shard):
            done += count
            progress(stage, done, size_bytes)
    if len(shards) > 1:
        write_json(folder / INDEX_NAME, _index(shards, size_bytes))
    return tuple(shards)


def _base(model: Checkpoint | MergedCheckpoint) -> Checkpoint:
    return model.base if isinstance(model, MergedCheckpoint) else model


def _shards(entries: Sequence[_Entry], shard_bytes: int) -> dict[str, list[_Entry]]:
    """Return file name → its tensors, in the model's order."""
    groups: list[list[_Entry]] = []
    room = 0
    for entry in entries:
        if not groups or entry.size_bytes > room:
            groups.append([])
            room = shard_bytes
        groups[-1].append(entry)
        room -= entry.size_bytes
    if len(groups) == 1:
        return {WEIGHTS_NAME: groups[0]}
    return {
        f"model-{number:05}-of-{len(groups):05}.safetensors": group for number, group in enumerate(groups, 1)
    }


def _write_shard(path: Path, entries: Sequence[_Entry]) -> Iterator[int]:
    """Write one weights file; yield how many bytes each write added."""
    with path.open("wb") as file:
        file.write(encode_header([(entry.name, entry.type_name, entry.tensor.shape) for entry in entries]))
        for entry in entries:
            for numbers in _blocks(entry):
                file.write(numbers.data)
                yield numbers.nbytes


def _blocks(entry: _Entry) -> Iterator[NDArray[Any]]:
    """Yield one weight's rows as they will be stored."""
    tensor = entry.tensor
    for rows in row_blocks(tensor.shape, block_bytes=_BLOCK_BYTES):
        numbers = tensor.read_stored(rows) if entry.type_name == tensor.type_name else None
        if numbers is None:
            computed = tensor.read(rows)
            _refuse_infinite(all_finite(computed, "F32"), f"{entry.name} has NaN or Inf", tensor)
            numbers = from_float32(computed, entry.type_name)
            reason = f"{entry.name} has numbers that are too large for {entry.type_name}"
            _refuse_infinite(all_finite(numbers, entry.type_name), reason, tensor)
        else:
            _refuse_infinite(all_finite(numbers, entry.type_name), f"{entry.name} has NaN or Inf", tensor)
        yield np.ascontiguousarray(numbers)


def _refuse_infinite(sound: bool, reason: str, tensor: Tensor) -> None:
    if sound:
        return
    where = f" in {tensor.path}" if isinstance(tensor, StoredTensor) else ""
    raise CheckpointError(
        f"The weight {reason}{where}.",
        hint="The model is damaged, or its training diverged; for F16, merge with --dtype BF16.",
    )


def _index(shards: dict[str, list[_Entry]], size_bytes: int) -> dict[str, Any]:
    weight_map = {entry.name: name for name, entries in shards.items() for entry in entries}
    return {"metadata": {"total_size": size_bytes}, "weight_map": weight_map}


def _write_other_files(
    model: Checkpoint | MergedCheckpoint, folder: Path, type_name: TypeName | None
) -> None:
    config = dict(model.config)
    if type_name:
        # Older versions of transformers read the longer name.
        key = "torch_dtype" if "torch_dtype" in config else "dtype"
        config[key] = _CONFIG_TYPES[type_name]
    if config == _base(model).config:
        shutil.copyfile(model.folder / CONFIG_NAME, folder / CONFIG_NAME)
    else:
        write_json(folder / CONFIG_NAME, config)
    sources = [model.folder / GENERATION_CONFIG_NAME]
    sources += [model.tokenizer_folder / name for name in TOKENIZER_FILES]
    for source in sources:
        if source.is_file():
            shutil.copyfile(source, folder / source.name)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file as Hugging Face's tools do: indented, its text as it is."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
