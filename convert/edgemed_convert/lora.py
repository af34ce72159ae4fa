"""`adapter`: a PEFT adapter as LoRA GGUF for a base GGUF, a clinic's update of megabytes.

The scale is folded into B, and the file's alpha is 0, which tells the engine to multiply by nothing: one
alpha for all modules would be wrong for rank-stabilised adapters and for patterns of ranks or alphas. B's
rows are put into the file's order (llama's q and k). The base file's SHA-256 stands in the metadata, for the
engine itself compares nothing but names and shapes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
from numpy.typing import NDArray

from edgemed_convert.adapter import Adapter, LoraPair, lora_pairs
from edgemed_convert.errors import AdapterError
from edgemed_convert.families.base import EMBEDDING, OUTPUT
from edgemed_convert.gguf_metadata import add_metadata
from edgemed_convert.lora_base import GGUFTensor, LoraBase
from edgemed_convert.output import Progress, check_free_space, new_file, no_progress
from edgemed_convert.safetensors_file import FloatArray, from_float32

AdapterType = Literal["F32", "F16", "BF16"]
BASE_SHA256_KEY = "edgemed.base_sha256"
"""Where the file says which base file it was made for; `edgemed models install` reads it."""
_FILE_TYPE_NUMBERS = {"F32": 0, "F16": 1, "BF16": 32}
# The products that the engine applies adapters to; it loads one for another tensor and forgets it.
_APPLIED = ("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
_MERGE = "Merge it into the base model instead."
# Of a frozen embedding saved with the adapter: Q2_K differs from its model by 0.3, another model by about 1.
_QUANTIZED_BASE_TOLERANCE = 0.6
_COMPARED_ROWS = 1024
_METADATA_ROOM_BYTES = 2**20


@dataclass(frozen=True)
class AdapterReport:
    """What was written."""

    path: Path
    type_name: AdapterType
    size_bytes: int
    modules: int
    """How many weights of the base the adapter changes."""
    ranks: Mapping[int, int]
    """Rank → number of modules that have it."""
    base_sha256: str
    base_name: str


def export_adapter(
    folder: Path,
    base_gguf: Path,
    target: Path,
    *,
    type_name: AdapterType = "F16",
    weight: float = 1.0,
    name: str | None = None,
    extra_metadata: Mapping[str, str | list[str]] | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> AdapterReport:
    """Write a PEFT adapter as LoRA GGUF.

    Args:
        folder: the adapter, as PEFT saved it.
        base_gguf: the file that it will be used with, quantized or not.
        type_name: F32 is exact; F16 makes the engine round what it multiplies, too.
        weight: how much of the adapter is applied; 1 is what was trained.
        name: how people will know it; None: the folder's name.
        extra_metadata: GGUF keys and values such as general.license.

    Raises:
        AdapterError: damaged, of another base, or not a low-rank change that the engine can apply.
        ModelError: the base file is damaged or of an unknown architecture.
        UsageError: the target exists.
        StorageError: the disk is full or read-only.
    """
    adapter = Adapter.open(folder, weight=weight)
    base = LoraBase.open(base_gguf)
    tensors = _tensors(lora_pairs(base.checkpoint, _without_copies(adapter, base)), base, type_name)
    sha256 = base.sha256(progress)
    size_bytes = sum(tensor.nbytes for tensor in tensors.values())
    if not target.exists():
        check_free_space(target.parent, size_bytes + _METADATA_ROOM_BYTES)
    base_name = base.name or base.path.stem
    metadata: dict[str, Any] = {
        "general.type": "adapter",
        "general.name": name or folder.resolve().name,
        "general.file_type": _FILE_TYPE_NUMBERS[type_name],
        "general.base_model.count": 1,
        "general.base_model.0.name": base_name,
        **dict(extra_metadata or {}),
        "adapter.type": "lora",
        "adapter.lora.alpha": 0.0,
        BASE_SHA256_KEY: sha256,
    }
    with new_file(target, replace=overwrite) as path:
        _write(path, base.architecture, metadata, tensors, type_name)
        written = path.stat().st_size
    progress("adapter", written, written)
    return AdapterReport(
        path=target,
        type_name=type_name,
        size_bytes=written,
        modules=len(tensors) // 2,
        ranks=adapter.ranks(),
        base_sha256=sha256,
        base_name=base_name,
    )


def _without_copies(adapter: Adapter, base: LoraBase) -> Adapter:
    """Leave out frozen embeddings that PEFT saved along, after comparing them with a quantized base.

    Those of an exact base are compared where every adapter is fitted.
    """
    modules = {}
    for module, roles in adapter.modules.items():
        saved = roles.get("base_layer.weight")
        tensor = base.checkpoint.weights.get(f"{module}.weight")
        if saved and isinstance(tensor, GGUFTensor) and not tensor.is_exact and saved.shape == tensor.shape:
            rows = slice(0, min(_COMPARED_ROWS, saved.shape[0]))
            here, there = tensor.read(rows), saved.read(rows)
            if np.linalg.norm(here - there) > _QUANTIZED_BASE_TOLERANCE * np.linalg.norm(there):
                raise AdapterError(
                    f"{adapter.folder} was trained on another base model than {base.path.name}: "
                    "the embedding saved with it differs.",
                    hint="Use the base model that the adapter was trained on.",
                )
            roles = {role: part for role, part in roles.items() if role != "base_layer.weight"}
        modules[module] = roles
    return replace(adapter, modules=modules)


def _tensors(pairs: list[LoraPair], base: LoraBase, type_name: AdapterType) -> dict[str, NDArray[Any]]:
    """Return the file's tensors: of each pair `.lora_a` (r, inputs) and `.lora_b` (outputs, r).

    Of the embedding the engine looks A's rows up by token: there `.lora_a` is (tokens, r).
    """
    orders = base.row_orders()
    tensors: dict[str, NDArray[Any]] = {}
    for pair in pairs:
        place = base.places[pair.name]
        if place not in (EMBEDDING, OUTPUT) and place.split(".")[-2] not in _APPLIED:
            raise AdapterError(
                f"The adapter changes {pair.name}, and the engine applies none to {place}.", hint=_MERGE
            )
        a, b = (pair.a.T, pair.b) if pair.is_embedding else (pair.a, pair.b[orders[pair.name]])
        for part, numbers in (("lora_a", a), ("lora_b", b)):
            tensors[f"{place}.{part}"] = _rounded(numbers, type_name, pair.name)
    if len(tensors) != 2 * len(pairs):
        raise AdapterError("The adapter changes a weight of the base twice.", hint=_MERGE)
    return tensors


def _rounded(numbers: FloatArray, type_name: AdapterType, name: str) -> NDArray[Any]:
    rounded = from_float32(numbers, type_name)
    if type_name == "F16" and not np.isfinite(rounded).all():
        raise AdapterError(
            f"The adapter of {name} holds a number too large for F16.", hint="Write it as F32."
        )
    return rounded


def _write(
    path: Path,
    architecture: str,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, NDArray[Any]],
    type_name: AdapterType,
) -> None:
    writer = gguf.GGUFWriter(path, architecture)
    try:
        add_metadata(writer, metadata)
        for name, numbers in tensors.items():
            data = numbers.view(np.uint8) if type_name == "BF16" else numbers
            writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[type_name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
