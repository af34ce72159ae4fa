"""Writes a model, with or without adapters applied, as one unquantized (or Q8_0) GGUF file.

Streamed: a row block of one tensor is read, changed, rounded once and written; nothing larger is ever held,
so the memory needed does not grow with the model.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

import gguf
import numpy as np
from numpy.typing import NDArray

from edgemed_convert.errors import CheckpointError
from edgemed_convert.families.base import OutputTensor
from edgemed_convert.families.registry import find_family
from edgemed_convert.gguf_metadata import add_metadata
from edgemed_convert.llama.process import LlamaProcess
from edgemed_convert.output import Progress, check_free_space, new_file, no_progress
from edgemed_convert.safetensors_file import BLOCK_BYTES, FloatArray, Weights, from_float32, row_blocks
from edgemed_convert.tokenizer.fields import TokenizerFields
from edgemed_convert.tokenizer.pre_tokenizer_proof import prove_pre_tokenizer, shown
from edgemed_convert.tokenizer.reader import read_tokenizer
from edgemed_convert.tokenizer.vocabulary_file import engine_name

FileType = Literal["F32", "F16", "BF16", "Q8_0"]
_FILE_TYPE_NUMBERS = {"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7}
_ALIGNMENT = 32


class Model(Protocol):
    """A base model, with or without adapters applied."""

    @property
    def folder(self) -> Path:
        """The base model's folder."""

    @property
    def tokenizer_folder(self) -> Path:
        """The folder whose tokenizer and chat template belong to the model."""

    @property
    def config(self) -> dict[str, Any]:
        """Its config.json."""

    @property
    def generation_config(self) -> dict[str, Any]:
        """Its generation_config.json; empty when there is none."""

    @property
    def architecture(self) -> str:
        """Its class in transformers."""

    @property
    def weights(self) -> Weights:
        """Its tensors by Hugging Face name."""


@dataclass(frozen=True)
class ExportReport:
    """What was written."""

    path: Path
    file_type: FileType
    size_bytes: int
    tensor_types: Mapping[str, int]
    """Type → number of tensors."""
    notes: tuple[str, ...]
    """What the engine does otherwise than transformers, in whole sentences."""


@dataclass(frozen=True)
class _Planned:
    """A tensor, its type in the file and its bytes there."""

    tensor: OutputTensor
    type_name: str
    size_bytes: int


def export_gguf(
    model: Model,
    target: Path,
    *,
    file_type: FileType = "F16",
    progress: Progress = no_progress,
    overwrite: bool = False,
    extra_metadata: Mapping[str, str | int | float | bool | list[str]] | None = None,
    prove_tokenizer: bool = True,
) -> ExportReport:
    """Write a model as GGUF.

    Args:
        file_type: of the matrices; vectors and a few tables stay F32.
        extra_metadata: GGUF keys and values, such as general.name, general.license and general.source.url.
        prove_tokenizer: split the probe texts with llama.cpp, too, before anything is written (a second or
        two).

    Raises:
        CheckpointError: the model is damaged, or the engine would not run it as transformers does.
        UsageError: the target exists.
        StorageError: the disk is full or read-only.
    """
    family = find_family(model)
    metadata = family.metadata(model.config)
    tokenizer, notes = _tokenizer(model, prove=prove_tokenizer)
    plan = [_planned(tensor, file_type) for tensor in family.tensors(model, tokens=tokenizer.size)]
    size_bytes = sum(entry.size_bytes for entry in plan)
    general = _general(model, tokenizer, file_type, dict(extra_metadata or {}))
    with new_file(target, replace=overwrite) as path:
        check_free_space(target.parent, size_bytes)
        writer = gguf.GGUFWriter(None, family.gguf_architecture)
        add_metadata(writer, general | metadata | tokenizer.metadata())
        for entry in plan:
            _add_tensor(writer, entry)
        try:
            _write(writer, path, plan, size_bytes, progress)
        finally:
            writer.close()
        written = path.stat().st_size
    return ExportReport(
        target,
        file_type,
        written,
        dict(Counter(entry.type_name for entry in plan).most_common()),
        (*family.notes(model.config), *notes),
    )


def _tokenizer(model: Model, *, prove: bool) -> tuple[TokenizerFields, tuple[str, ...]]:
    """Return the tokenizer with the splitting rule's proven name, and notes on it."""
    folder = model.tokenizer_folder
    fields = read_tokenizer(folder, model.config, generation_config=model.generation_config)
    if not prove:
        return fields, fields.notes
    with LlamaProcess(threads=1) as llama:
        proof = prove_pre_tokenizer(folder, fields, llama)
    if proof is None:
        return fields, fields.notes
    if proof.different and fields.model == "gpt2":
        raise CheckpointError(
            f"The engine makes other tokens than the tokenizer of {folder}, even of ordinary texts such as "
            f"{shown(proof.different[0])}.",
            hint="This model cannot be exported: its answers would be wrong.",
        )
    return proof.fields, (*fields.notes, *proof.notes)


def _general(
    model: Model, tokenizer: TokenizerFields, file_type: FileType, extra: dict[str, Any]
) -> dict[str, Any]:
    name = str(extra.pop("general.name", None) or model.folder.resolve().name)
    return {
        "general.type": "model",
        "general.name": engine_name(name, tokenizer),
        "general.file_type": _FILE_TYPE_NUMBERS[file_type],
        "general.quantization_version": int(gguf.GGML_QUANT_VERSION),
        **extra,
    }


def _planned(tensor: OutputTensor, file_type: FileType) -> _Planned:
    type_name = "F32" if tensor.keep_f32 else file_type
    if type_name == "Q8_0" and tensor.shape[-1] % 32:
        # Its blocks have 32 numbers; what they do not divide stays at 16 bits.
        type_name = "F16"
    block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type_name]]
    return _Planned(tensor, type_name, prod(tensor.shape) // block * block_bytes)


def _add_tensor(writer: gguf.GGUFWriter, entry: _Planned) -> None:
    quantization = gguf.GGMLQuantizationType[entry.type_name]
    block, block_bytes = gguf.GGML_QUANT_SIZES[quantization]
    shape = (*entry.tensor.shape[:-1], entry.tensor.shape[-1] // block * block_bytes)
    writer.add_tensor_info(
        entry.tensor.name, shape, np.dtype(np.uint8), entry.size_bytes, raw_dtype=quantization
    )


def _write(
    writer: gguf.GGUFWriter, path: Path, plan: list[_Planned], size_bytes: int, progress: Progress
) -> None:
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    file = writer.fout[0]
    _pad(file)
    done = 0
    for entry in plan:
        for block in _blocks(entry):
            file.write(np.ascontiguousarray(block).data)
            done += block.nbytes
            progress("export", done, size_bytes)
        _pad(file)
    file.flush()


def _pad(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % _ALIGNMENT))


def _blocks(entry: _Planned) -> Iterator[NDArray[Any]]:
    """Yield a tensor's bytes in row blocks, rounded once from float32."""
    tensor = entry.tensor
    for rows in row_blocks(tensor.shape, block_bytes=BLOCK_BYTES):
        stored = None
        if tensor.read_stored is not None and tensor.stored_type == entry.type_name:
            stored = tensor.read_stored(rows.start, rows.stop)
        if stored is not None:
            _check_stored(stored, tensor)
            yield stored
            continue
        numbers = tensor.read(rows.start, rows.stop)
        _check_finite(numbers, tensor)
        yield _rounded(numbers, entry)


def _rounded(numbers: FloatArray, entry: _Planned) -> NDArray[Any]:
    if entry.type_name == "Q8_0":
        # A block's scale is an F16: its largest number / 127.
        if max(numbers.max(), -numbers.min()) > 127 * 65504.0:
            raise _too_large(entry)
        quantized: NDArray[Any] = gguf.quants.quantize(numbers, gguf.GGMLQuantizationType.Q8_0)
        return quantized
    rounded = from_float32(numbers, entry.type_name)
    if entry.type_name == "F16" and not np.isfinite(rounded).all():
        raise _too_large(entry)
    return rounded


def _check_stored(stored: NDArray[Any], tensor: OutputTensor) -> None:
    finite = (stored & 32640 != 32640).all() if tensor.stored_type == "BF16" else np.isfinite(stored).all()
    if not finite:
        raise _not_finite(tensor)


def _check_finite(numbers: FloatArray, tensor: OutputTensor) -> None:
    # A sum is NaN or infinite as soon as one number is, and needs no array of its own.
    with np.errstate(all="ignore"):
        if not np.isfinite(np.sum(numbers, dtype=np.float64)):
            raise _not_finite(tensor)


def _too_large(entry: _Planned) -> CheckpointError:
    return CheckpointError(
        f"{_names(entry.tensor)} holds a number too large for {entry.type_name}.",
        hint="Export as BF16 or F32.",
    )


def _not_finite(tensor: OutputTensor) -> CheckpointError:
    return CheckpointError(
        f"{_names(tensor)} holds NaN or infinite numbers.",
        hint="The training diverged, or the file is damaged: use an earlier checkpoint or copy it again.",
    )


def _names(tensor: OutputTensor) -> str:
    return " and ".join(tensor.hf_names) or tensor.name
