"""What a whole conversion needs of disk and memory, said and compared before anything is written.

Estimates come from the shapes of the weights alone; quantizing itself asks llama.cpp for exact sizes later.
Called by `run.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Literal

from edgemed import machine
from edgemed.errors import NotEnoughMemory, StorageError
from edgemed.ggml_types import GGML_TYPES
from edgemed_convert.output import readable_bytes
from edgemed_convert.quantization_types import QUANTIZATION_TYPES, UNQUANTIZED_TYPES
from edgemed_convert.safetensors_file import BLOCK_BYTES, Weights

LogitsCheck = Literal["whole model", "first layers", "none"]

_PROGRAM_BYTES = 150 * 10**6
"""Python, numpy and one llama.cpp process without a model; measured 130 MB."""
_TRANSFORMERS_BYTES = 500 * 10**6
"""transformers and torch, loaded for the tokenizer; measured 430 MB."""
_COMPARED_POSITIONS = 2500
_KEPT_LOGITS_BYTES = 2**30
"""Logits of so many positions of the checks' text are kept, at most this much."""
_WINDOW_POSITIONS = 512
_FILE_RESERVE_BYTES = 2**20
_TOKEN_BYTES = 64
"""Of the vocabulary in each file: a token's text, score, kind and merge take 30 to 50."""
_TORCH_BYTES = 600 * 10**6
_MIXTURE_SHARE = 1.12
"""llama.cpp's mixtures keep some matrices in a finer type: 8 % at most on 7-8B models, 12 % on small ones."""
_CHECKED_LAYERS = 6
"""At most so many first layers are compared where the whole model does not fit."""


@dataclass(frozen=True)
class Need:
    """What will be needed, and what there is."""

    disk_bytes: int
    free_disk_bytes: int
    memory_bytes: int
    """Without this much no stage can work."""
    free_memory_bytes: int
    logits: LogitsCheck
    """What the memory and the installed packages allow to be compared with transformers."""


def estimate_need(
    weights: Weights,
    folder: Path,
    *,
    new_types: Sequence[str],
    kept_bytes: int = 0,
    merged_bytes: int = 0,
) -> Need:
    """Return what a run will need.

    Args:
        weights: of the merged model.
        folder: where the files will be; it need not exist yet.
        new_types: of the files that are still to be written, the intermediate one among them.
        kept_bytes: what else will be copied, such as packs on a disk without links.
        merged_bytes: size of a merged folder that is written for a while.
    """
    sizes = [prod(tensor.shape) for tensor in weights.values()]
    parameters, largest = sum(sizes), max(sizes)
    files = sum(_file_bytes(weights, type_name) for type_name in new_types)
    logits, scratch_bytes = _logits_check(weights, parameters)
    # llama.cpp holds one matrix as float32 and again as what it becomes; the exporter some row blocks.
    memory = _PROGRAM_BYTES + max(4 * BLOCK_BYTES, 6 * largest, _check_bytes(weights))
    return Need(
        disk_bytes=files + kept_bytes + merged_bytes + scratch_bytes,
        free_disk_bytes=free_disk_bytes(folder),
        memory_bytes=memory,
        free_memory_bytes=machine.available_memory_bytes(),
        logits=logits,
    )


def check_need(need: Need, folder: Path) -> None:
    """Refuse what cannot fit.

    Raises:
        StorageError: the disk is too small.
        NotEnoughMemory: the memory is.
    """
    if need.free_disk_bytes < need.disk_bytes:
        raise StorageError(
            f"The disk of {folder} has {readable_bytes(need.free_disk_bytes)} free, but this run needs about "
            f"{readable_bytes(need.disk_bytes)}.",
            hint="Free some space, name a folder on another disk, or ask for fewer types.",
        )
    if need.free_memory_bytes < need.memory_bytes:
        raise NotEnoughMemory(
            f"This run needs about {readable_bytes(need.memory_bytes)} of memory, "
            f"and {readable_bytes(need.free_memory_bytes)} are free.",
            hint="Close other programs, or use a machine with more memory.",
        )


def free_disk_bytes(folder: Path) -> int:
    """Return what is free on the disk that a folder is or will be on."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return machine.free_disk_bytes(existing)


def _logits_check(weights: Weights, parameters: int) -> tuple[LogitsCheck, int]:
    """Return what can be compared with transformers, and the disk space that this takes for a while."""
    if not (find_spec("torch") and find_spec("transformers")):
        return "none", 0
    layers = {int(part) for name in weights for part in name.split(".") if part.isdigit()}
    first = sum(
        prod(tensor.shape)
        for name, tensor in weights.items()
        if next((int(part) for part in name.split(".") if part.isdigit()), -1)
        < min(_CHECKED_LAYERS, max(2, len(layers)))
    )
    # Both programs hold float32 copies: transformers the weights, llama.cpp its file.
    whole = 4 * parameters + 2 * parameters + _TORCH_BYTES
    return ("whole model" if whole <= machine.available_memory_bytes() else "first layers"), 4 * first


def _check_bytes(weights: Weights) -> int:
    """Return what the checks need beside the programs: transformers, and logits over the whole vocabulary."""
    tokens = max((t.shape[0] for name, t in weights.items() if _is_vocabulary(name)), default=0)
    kept = min(_KEPT_LOGITS_BYTES, 4 * tokens * _COMPARED_POSITIONS)
    return (
        (_TRANSFORMERS_BYTES if find_spec("transformers") else 0) + kept + 2 * 4 * tokens * _WINDOW_POSITIONS
    )


def _is_vocabulary(name: str) -> bool:
    return name.endswith(("embed_tokens.weight", "wte.weight", "lm_head.weight"))


def _file_bytes(weights: Weights, type_name: str) -> int:
    size = _FILE_RESERVE_BYTES
    for name, tensor in weights.items():
        numbers = prod(tensor.shape)
        if len(tensor.shape) < 2:
            size += 4 * numbers
            continue
        is_vocabulary = _is_vocabulary(name)
        size += int(numbers * _bytes_per_weight(type_name, is_vocabulary=is_vocabulary))
        if is_vocabulary:
            size += tensor.shape[0] * _TOKEN_BYTES
    return size


def _bytes_per_weight(type_name: str, *, is_vocabulary: bool) -> float:
    kind = QUANTIZATION_TYPES[type_name]
    by_name = {name: size / numbers for name, numbers, size in GGML_TYPES.values()}
    if kind in UNQUANTIZED_TYPES or kind == "Q8_0":
        return by_name[kind]
    if is_vocabulary:
        # The head, or the embedding that serves as one, is Q6_K in every smaller type.
        return max(by_name[kind], by_name["Q6_K"])
    return by_name[kind] * _MIXTURE_SHARE
