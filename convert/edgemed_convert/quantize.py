"""Unquantized GGUF → quantized ones, through llama.cpp's own quantizer; says what is really in the files.

`plan_quantization` in quantization_plan.py looks and refuses before anything is written; `quantize` writes.
"""

import time
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from edgemed.errors import EdgemedError, ModelCorrupt, StorageError
from edgemed.gguf_header import read_header, tensor_types
from edgemed_convert.errors import LlamaCppError
from edgemed_convert.llama.connection import ProcessLost
from edgemed_convert.llama.process import LlamaProcess
from edgemed_convert.output import Progress, check_free_space, new_file, no_progress, readable_bytes
from edgemed_convert.quantization_plan import (
    Fallback,
    PlannedFile,
    QuantizationPlan,
    run_quantizer,
    warnings_of,
)
from edgemed_convert.quantization_types import (
    QUANTIZATION_TYPES,
)


@dataclass(frozen=True)
class QuantizedFile:
    """A file that was written, and what is really in it."""

    path: Path
    type_name: str
    """What it was asked to be."""
    size_bytes: int
    parameters: int
    bits_per_weight: float
    """Of all tensors together, without the metadata."""
    tensor_types: dict[str, int]
    """Type → number of tensors, the most frequent first."""
    fallbacks: list[Fallback]
    holds_its_type: bool
    """Whether the label is true: some tensor is of the type that it names."""
    imatrix: str | None
    seconds: float
    warnings: list[str] = field(default_factory=list)


def quantize(
    plan: QuantizationPlan, *, process: LlamaProcess, progress: Progress = no_progress
) -> list[QuantizedFile]:
    """Write every planned file; each appears under its name when it is whole.

    Raises:
        ModelCorrupt: the source holds numbers that cannot be quantized.
        StorageError: the disk is full or fails.
        LlamaCppError: llama.cpp refused or died.
    """
    return [_quantize_one(plan, file, process, progress) for file in plan.files]


def _quantize_one(
    plan: QuantizationPlan, file: PlannedFile, process: LlamaProcess, progress: Progress
) -> QuantizedFile:
    started = time.monotonic()
    with new_file(file.path, replace=plan.options.overwrite) as written:
        try:
            run_quantizer(
                process,
                plan.source,
                written,
                file.type_name,
                plan.options,
                plan.matrix,
                on_progress=lambda done, total, _tensor: progress(file.type_name, done, total, "tensors"),
            )
        except ProcessLost:
            raise
        except LlamaCppError as error:
            raise _explained(error, plan.source, file) from error
        header = read_header(written)
    parameters = sum(prod(tensor.shape) for tensor in header.tensors)
    types = tensor_types(header)
    holds_its_type = QUANTIZATION_TYPES[file.type_name] in types
    return QuantizedFile(
        path=file.path,
        type_name=file.type_name,
        size_bytes=header.file_size,
        parameters=parameters,
        bits_per_weight=8 * sum(tensor.size_bytes for tensor in header.tensors) / max(1, parameters),
        tensor_types=types,
        fallbacks=file.fallbacks,
        holds_its_type=holds_its_type,
        imatrix=None if plan.options.imatrix is None else plan.options.imatrix.name,
        seconds=time.monotonic() - started,
        warnings=warnings_of(file),
    )


def _explained(error: LlamaCppError, source: Path, file: PlannedFile) -> EdgemedError:
    """Turn llama.cpp's reason into a sentence that helps."""
    reason = error.message
    if "invalid data" in reason or "data validation failed" in reason:
        return ModelCorrupt(
            f"{source.name} cannot be quantized to {file.type_name}: {reason} (NaN or infinite numbers).",
            hint="Find the fault with edgemed-convert check, and export the model again.",
        )
    if "iostream error" in reason or "basic_ios" in reason:
        try:
            check_free_space(file.path.parent, file.size_bytes)
        except StorageError as full:
            return full
        return StorageError(
            f"{file.path} could not be written: the disk is full or refuses a file of "
            f"{readable_bytes(file.size_bytes)}.",
            hint="Free some space, or name a folder on another disk.",
        )
    return LlamaCppError(
        f"llama.cpp cannot make {file.type_name} of {source.name}: {reason}.", hint=error.hint
    )
