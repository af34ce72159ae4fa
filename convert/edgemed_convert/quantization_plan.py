"""What quantizing will write, asked of llama.cpp beforehand: sizes, types, and what cannot be done.

Nothing is written here; `quantize.py` does it by the plan.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path, PureWindowsPath

from edgemed.errors import ModelUnsupported, UsageError
from edgemed.ggml_types import GGML_TYPES
from edgemed.gguf_header import GGUFHeader, TensorInfo, read_shards, tensor_types
from edgemed_convert.errors import CheckFailed, LlamaCppError
from edgemed_convert.imatrix_file import FloatArray, ImportanceMatrix, check_belongs, read_imatrix
from edgemed_convert.llama.connection import ProcessLost
from edgemed_convert.llama.process import LlamaProcess
from edgemed_convert.output import check_free_space
from edgemed_convert.quantization_types import (
    QUANTIZATION_TYPES,
    UNQUANTIZED_TYPES,
    check_tensor_types,
    parse_types,
)

_PLANNED_LINE = re.compile(r"\[ *\d+/ *\d+\] (\S+) .*?, type = +(\w+), size = .*?(?:\((\w+)\))?$")
_FALLBACK_LINE = re.compile(
    r"warning: (\S+) +- ncols +(\d+) not divisible by +(\d+) \(required for type +(\w+)\)"
    r".*-> falling back to +(\w+)"
)
_NEEDS_MATRIX = "will require an imatrix"
_ALIGNMENT = 32
_METADATA_RESERVE_BYTES = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions:
    """How to quantize; the defaults are llama.cpp's."""

    imatrix: Path | None = None
    """An importance matrix of this model."""
    output_type: str | None = None
    """Tensor type of the output head, such as Q8_0."""
    embedding_type: str | None = None
    """Tensor type of the token embeddings."""
    tensor_types: tuple[tuple[str, str], ...] = ()
    """Pairs of a regular expression on tensor names and the tensor type of those it finds."""
    pure: bool = False
    """No mixtures: every matrix gets the same type."""
    allow_requantize: bool = False
    """Take a source that is quantized already; its losses add up."""
    strict: bool = False
    """Refuse a type that the model's shape turns into another."""
    overwrite: bool = False


@dataclass(frozen=True)
class Fallback:
    """A matrix whose rows do not fit the blocks of the type it should have."""

    tensor: str
    row_length: int
    wanted: str
    given: str


@dataclass(frozen=True)
class PlannedFile:
    """What quantizing to one type will write."""

    type_name: str
    path: Path
    size_bytes: int
    tensor_types: dict[str, str]
    """Tensor name → type."""
    fallbacks: list[Fallback]

    @property
    def holds_its_type(self) -> bool:
        """Whether the file will hold any tensor of the type that it is named after."""
        return QUANTIZATION_TYPES[self.type_name] in self.tensor_types.values()


@dataclass(frozen=True)
class QuantizationPlan:
    """Everything `quantize` needs, checked."""

    source: Path
    files: list[PlannedFile]
    options: QuantizeOptions
    matrix: ImportanceMatrix | None

    @property
    def needed_bytes(self) -> int:
        """Disk space that all files will take together."""
        return sum(file.size_bytes for file in self.files)

    @property
    def warnings(self) -> list[str]:
        """Sentences about what the user may not expect."""
        return [sentence for file in self.files for sentence in warnings_of(file)]


def target_path(source: Path, folder: Path, type_name: str) -> Path:
    """Return where a type's file goes: tiny-F16.gguf → folder/tiny-Q8_0.gguf."""
    stem = re.sub(r"-\d{5}-of-\d{5}$", "", source.stem)
    for ending in QUANTIZATION_TYPES:
        if stem.upper().endswith((f"-{ending}", f".{ending}", f"_{ending}")):
            stem = stem[: -len(ending) - 1]
            break
    return folder / f"{stem}-{type_name}.gguf"


def plan_quantization(
    source: Path,
    types: Sequence[str],
    folder: Path,
    *,
    options: QuantizeOptions | None = None,
    process: LlamaProcess,
) -> QuantizationPlan:
    """Look at the source, ask llama.cpp what it would write, and refuse what cannot be done.

    Args:
        source: a GGUF file, or any shard of a split one.
        types: llama.cpp's names.
        folder: where the files will be written.

    Raises:
        UsageError: an unknown type, a quantized source, an existing target, no matrix where one is needed.
        ModelError: the source or the matrix is damaged, or they do not belong together.
        CheckFailed: with `strict`, a file would not hold the type that it is named after.
        StorageError: there is not enough space.
    """
    options = options or QuantizeOptions()
    names = parse_types(types)
    headers = read_shards(source)
    first = headers[0].path
    _check_source(source, headers, options)
    check_tensor_types([options.output_type, options.embedding_type, *dict(options.tensor_types).values()])
    _check_patterns(options)
    matrix = None
    if options.imatrix is not None:
        matrix = read_imatrix(options.imatrix)
        check_belongs(matrix, options.imatrix, headers)
    files = []
    for name in names:
        target = target_path(source, folder, name)
        _check_target(target, headers, overwrite=options.overwrite)
        files.append(_planned(process, first, target, name, headers, options, matrix))
    plan = QuantizationPlan(first, files, options, matrix)
    untrue = [file.type_name for file in files if not file.holds_its_type]
    if untrue and options.strict:
        raise CheckFailed(
            _untrue_name(next(file for file in files if not file.holds_its_type)),
            hint=f"Leave out {', '.join(untrue)}, or allow it without --strict.",
        )
    check_free_space(folder, plan.needed_bytes)
    return plan


def _planned(
    process: LlamaProcess,
    source: Path,
    target: Path,
    type_name: str,
    headers: Sequence[GGUFHeader],
    options: QuantizeOptions,
    matrix: ImportanceMatrix | None,
) -> PlannedFile:
    try:
        log = run_quantizer(process, source, target, type_name, options, matrix, dry_run=True)
    except ProcessLost:
        raise
    except LlamaCppError as error:
        raise LlamaCppError(
            f"llama.cpp cannot make {type_name} of {source.name}: {error.message}.", hint=error.hint
        ) from error
    if matrix is None and any(_NEEDS_MATRIX in line for line in log):
        raise UsageError(
            f"{type_name} needs an importance matrix: without one the result would be garbage.",
            hint="Make one with edgemed-convert imatrix, and name it with --imatrix.",
        )
    types = {}
    for line in log:
        found = _PLANNED_LINE.match(line.strip())
        if found:
            types[found[1]] = (found[3] or found[2]).upper()
    tensors = [tensor for header in headers for tensor in header.tensors]
    if set(types) != {tensor.name for tensor in tensors}:
        raise LlamaCppError(f"llama.cpp's plan for {source.name} does not name every tensor.")
    size_bytes = headers[0].file_size if not tensors else headers[0].tensors[0].offset
    size_bytes += _METADATA_RESERVE_BYTES + sum(_size_bytes(tensor, types[tensor.name]) for tensor in tensors)
    return PlannedFile(type_name, target, size_bytes, types, _fallbacks(log))


def run_quantizer(
    process: LlamaProcess,
    source: Path,
    target: Path,
    type_name: str,
    options: QuantizeOptions,
    matrix: ImportanceMatrix | None,
    *,
    dry_run: bool = False,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> list[str]:
    """Call llama.cpp's quantizer with the options of a plan; see `LlamaProcess.quantize`."""
    weights: Mapping[str, FloatArray] | None = None if matrix is None else matrix.weights()
    return process.quantize(
        source,
        target,
        type_name,
        imatrix=weights,
        metadata=_origin(options.imatrix, matrix),
        output_type=options.output_type,
        embedding_type=options.embedding_type,
        tensor_types=options.tensor_types,
        pure=options.pure,
        allow_requantize=options.allow_requantize,
        dry_run=dry_run,
        on_progress=on_progress,
    )


def _origin(path: Path | None, matrix: ImportanceMatrix | None) -> dict[str, str | int]:
    """The keys by which llama-quantize records a matrix in the file."""
    if path is None or matrix is None:
        return {}
    origin: dict[str, str | int] = {"quantize.imatrix.file": path.name}
    if matrix.datasets:
        # llama-imatrix records a path of the machine that it ran on.
        origin["quantize.imatrix.dataset"] = PureWindowsPath(matrix.datasets[0]).name
    origin["quantize.imatrix.entries_count"] = len(matrix.sums)
    if matrix.chunk_count > 0:
        origin["quantize.imatrix.chunks_count"] = matrix.chunk_count
    return origin


def _check_source(source: Path, headers: Sequence[GGUFHeader], options: QuantizeOptions) -> None:
    kind = headers[0].text("general.type") or "model"
    if kind != "model" or not any(header.tensors for header in headers):
        what = f"a GGUF file of type {kind}" if kind != "model" else "a vocabulary without weights"
        raise ModelUnsupported(
            f"{source.name} is {what}: there is nothing to quantize.", hint="Name a model's GGUF file."
        )
    quantized = [name for name in tensor_types(*headers) if name not in UNQUANTIZED_TYPES]
    if quantized and not options.allow_requantize:
        raise UsageError(
            f"{source.name} is quantized already ({', '.join(quantized)}); its losses would add up.",
            hint="Quantize the F16, BF16 or F32 file of the model, or allow it: --allow-requantize",
        )


def _check_target(target: Path, headers: Sequence[GGUFHeader], *, overwrite: bool) -> None:
    if not target.exists():
        return
    for header in headers:
        if target.samefile(header.path):
            raise UsageError(
                f"{target.name} would be written over the file that it is made of.",
                hint="Name another folder for the output, or leave that type out.",
            )
    if not overwrite:
        raise UsageError(
            f"{target} exists.", hint="Give the output another folder; --overwrite replaces the old file."
        )


def _check_patterns(options: QuantizeOptions) -> None:
    for pattern, _ in options.tensor_types:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UsageError(f"{pattern!r} is no regular expression: {error}.") from error


def warnings_of(file: PlannedFile) -> list[str]:
    """Return sentences about what the model's shape made of the type."""
    sentences = []
    if file.fallbacks:
        matrices = sum(name != "F32" for name in file.tensor_types.values())
        example = file.fallbacks[0]
        given = ", ".join(sorted({fallback.given for fallback in file.fallbacks}))
        sentences.append(
            f"{file.path.name}: {len(file.fallbacks)} of {matrices} matrices become {given}, "
            f"for their rows do not fit "
            f"{example.wanted} ({example.tensor} has rows of {example.row_length})."
        )
    if not file.holds_its_type:
        sentences.append(_untrue_name(file))
    return sentences


def _untrue_name(file: PlannedFile) -> str:
    return (
        f"{file.path.name}: no tensor is {QUANTIZATION_TYPES[file.type_name]}, "
        f"so the name {file.type_name} is not true."
    )


def _fallbacks(log: Sequence[str]) -> list[Fallback]:
    return [
        Fallback(found[1], int(found[2]), found[4].upper(), found[5].upper())
        for line in log
        if (found := _FALLBACK_LINE.search(line))
    ]


def _size_bytes(tensor: TensorInfo, type_name: str) -> int:
    _, block_elements, block_bytes = next(row for row in GGML_TYPES.values() if row[0] == type_name)
    size_bytes = prod(tensor.shape) // block_elements * block_bytes
    return -(-size_bytes // _ALIGNMENT) * _ALIGNMENT
