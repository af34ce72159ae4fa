"""Every tensor of a file against the model's weights, number by number, in row blocks.

An unquantized file must hold the model's numbers exactly, a quantized one within what its type can lose. This
finds a skipped layer of an adapter, a wrong scale, swapped or zeroed tensors in any file of any size, because
nothing is run. Also: types present = types claimed, no NaN or infinity. Called by `gate.py`.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgemed.check_report import CheckResult, CheckStatus
from edgemed_convert.check.gguf_file import UNQUANTIZED, GGUFFile, can_dequantize, rounded
from edgemed_convert.check.model_config import ModelConfig
from edgemed_convert.check.tensor_sources import HEAD, Source, TensorSources, computed_tensors
from edgemed_convert.output import Progress
from edgemed_convert.safetensors_file import FloatArray, Weights

# Root mean square of the error over that of the weights, for each type. Measured on llama.cpp's quantizations
# of normal, heavy-tailed and uniform weights and of ones with very unequal rows and columns, with and without
# an importance matrix (Q4_K: 0.07 for normal ones, 0.32 at worst). A zeroed tensor has 1, a swapped one 1.4.
ERROR_BOUNDS = {
    "Q8_0": 0.03, "Q6_K": 0.12, "Q5_K": 0.15, "Q5_1": 0.15, "Q5_0": 0.18, "Q4_K": 0.40, "Q4_1": 0.40,
    "Q4_0": 0.42, "IQ4_NL": 0.35, "IQ4_XS": 0.35, "MXFP4": 0.45, "NVFP4": 0.45, "Q3_K": 0.45, "IQ3_S": 0.50,
    "IQ3_XXS": 0.55, "Q2_K": 0.60, "IQ2_S": 0.80, "IQ2_XS": 0.80, "IQ2_XXS": 0.85, "IQ1_M": 0.88,
    "IQ1_S": 0.95, "TQ1_0": 0.95, "TQ2_0": 0.95,
}  # fmt: skip
_ROW_BOUND = 0.95
"""Of one row: a zeroed row has 1. Types of two bits and less lose whole rows by themselves."""
_LOSES_ROWS = {"IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S", "TQ1_0", "TQ2_0"}
# Computed numbers (base + adapter) may differ by the order of a sum: a few float32 roundings, or the
# neighbour at 16 bits when the sum lies between two.
_COMPUTED_ERROR = {"F32": 1e-6, "F16": 1e-5, "BF16": 1e-4}


@dataclass
class _Findings:
    """What the walk over a file found."""

    exact: int = 0
    compared: int = 0
    skipped: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    infinite: list[str] = field(default_factory=list)
    worst: dict[str, float] = field(default_factory=dict)
    """Of each type, the largest relative error of a tensor."""
    worst_row: dict[str, float] = field(default_factory=dict)


def check_tensors(
    config: ModelConfig, weights: Weights, file: GGUFFile, *, progress: Progress
) -> list[CheckResult]:
    """Compare all tensors of a file with the model's; returns the results "tensors" and "finite"."""
    sources = TensorSources(config, weights)
    computed = computed_tensors(config)
    findings = _Findings()
    total = sum(tensor.size_bytes for tensor in file.tensors)
    done = 0
    for tensor in file.tensors:
        _compare(file, tensor.name, sources, computed.get(tensor.name), findings)
        done += tensor.size_bytes
        progress("tensors", done, total)
    findings.faults += [f"{name} of the model is not in the file" for name in sources.missing(_names(file))]
    findings.faults += [f"{name} is missing" for name in computed if name not in file]
    findings.faults += _head_faults(file, sources)
    return [_tensors_result(file, findings), _finite_result(file, findings)]


def _names(file: GGUFFile) -> list[str]:
    return [tensor.name for tensor in file.tensors]


def _compare(
    file: GGUFFile,
    name: str,
    sources: TensorSources,
    computed: FloatArray | None,
    findings: _Findings,
) -> None:
    type_name = file.info(name).type_name
    if not can_dequantize(type_name):
        findings.skipped.append(f"{name} ({type_name})")
        return
    if computed is not None:
        _compare_computed(file, name, computed, findings)
        return
    source = sources.find(name)
    if source is None:
        findings.faults.append(f"{name} has no place in the model")
        return
    if not _shape_fits(file, name, source):
        findings.faults.append(f"{name} has the shape {file.shape(name)}; the model {source.shape}")
        return
    findings.compared += 1
    difference = _difference(file, name, source)
    if not difference.finite:
        findings.infinite.append(name)
    findings.worst[type_name] = max(findings.worst.get(type_name, 0.0), difference.relative)
    findings.worst_row[type_name] = max(findings.worst_row.get(type_name, 0.0), difference.worst_row)
    if type_name in UNQUANTIZED:
        allowed = _COMPUTED_ERROR[type_name] if source.is_computed else 0.0
        findings.exact += difference.relative == 0
    else:
        allowed = ERROR_BOUNDS.get(type_name, _ROW_BOUND)
    if difference.relative > allowed:
        findings.faults.append(
            f"{name} differs from {source.name} by {difference.relative:.2g}"
            + (f" (allowed for {type_name}: {allowed:g})" if allowed else "")
        )
    elif difference.worst_row > _ROW_BOUND and type_name not in _LOSES_ROWS:
        findings.faults.append(f"{name} has a row that is not that of {source.name}")


def _shape_fits(file: GGUFFile, name: str, source: Source) -> bool:
    shape = file.shape(name)
    # Only the embedding may be cut: to the tokens that the tokenizer has (`metadata.py` judges their number).
    if name in (HEAD, "token_embd.weight"):
        return shape[1:] == source.shape[1:] and shape[0] == file.token_count <= source.shape[0]
    return shape == source.shape


@dataclass(frozen=True)
class _Difference:
    relative: float
    """Root mean square of the difference over that of the model's numbers."""
    worst_row: float
    finite: bool


def _difference(file: GGUFFile, name: str, source: Source) -> _Difference:
    type_name = file.info(name).type_name
    errors, norms = [], []
    finite = True
    for start, stop in file.blocks(name):
        found = file.read(name, start, stop)
        finite = finite and bool(np.isfinite(found).all())
        expected = source.read(start, stop)
        if type_name in UNQUANTIZED:
            expected = rounded(expected, type_name)
        with np.errstate(invalid="ignore", over="ignore"):
            errors.append(_row_squares(found - expected))
        norms.append(_row_squares(expected))
    error, norm = np.concatenate(errors), np.concatenate(norms)
    whole = float(norm.sum())
    # A vector has rows of one number: its norm as a whole decides.
    significant = norm > 1e-4 * norm.mean() if len(file.shape(name)) > 1 else np.zeros(len(norm), bool)
    rows = np.sqrt(error[significant] / norm[significant])
    relative = float(np.sqrt(error.sum() / whole)) if whole else float(error.sum() > 0)
    return _Difference(
        relative=relative if np.isfinite(relative) else np.inf,
        worst_row=float(rows.max(initial=0.0)),
        finite=finite,
    )


def _row_squares(numbers: FloatArray) -> NDArray[np.float64]:
    flat = numbers.reshape(len(numbers), -1)
    squares: NDArray[np.float64] = np.einsum("ij,ij->i", flat, flat, dtype=np.float64)
    return squares


def _compare_computed(file: GGUFFile, name: str, expected: FloatArray, findings: _Findings) -> None:
    findings.compared += 1
    if file.shape(name) != expected.shape:
        findings.faults.append(f"{name} has the shape {file.shape(name)}; the model {expected.shape}")
        return
    found = file.read(name, 0, len(expected))
    if not np.allclose(found, expected, rtol=2e-6, atol=0):
        findings.faults.append(f"{name} does not hold the factors that config.json asks for")
    if not np.isfinite(found).all():
        findings.infinite.append(name)


def _head_faults(file: GGUFFile, sources: TensorSources) -> list[str]:
    """The file has an output head if, and only if, it differs from the embedding."""
    embedding, head = sources.embedding, sources.head
    if embedding is None:
        return ["the model has no embedding"]
    same = head is None or _equal(embedding, head, file)
    if same and HEAD in file:
        return [f"{HEAD} is in the file, but the model's head is its embedding"]
    if not same and HEAD not in file:
        return [f"{HEAD} is missing: the model's head is not its embedding"]
    return []


def _equal(one: Source, other: Source, file: GGUFFile) -> bool:
    if one.shape != other.shape:
        return False
    return all(
        np.array_equal(one.read(start, stop), other.read(start, stop))
        for start, stop in file.blocks("token_embd.weight")
    )


def _tensors_result(file: GGUFFile, findings: _Findings) -> CheckResult:
    faults, skipped = findings.faults, findings.skipped
    status: CheckStatus = "failed" if faults else "not_run" if skipped else "passed"
    if faults:
        sentence = f"{len(faults)} tensors are not the model's."
    elif skipped:
        sentence = f"{len(skipped)} tensors are of a type whose numbers cannot be read here."
    elif file.is_quantized:
        sentence = f"All {findings.compared} tensors are the model's, within what their types can hold."
    else:
        sentence = f"All {findings.compared} tensors hold the model's numbers."
    return CheckResult(
        name="tensors",
        file=file.path.name,
        status=status,
        sentence=sentence,
        numbers={
            "compared": findings.compared,
            "exactly_equal": findings.exact,
            **{f"worst_error_{name}": value for name, value in sorted(findings.worst.items())},
            **{
                f"worst_row_error_{name}": value
                for name, value in sorted(findings.worst_row.items())
                if value
            },
        },
        limit="unquantized: equal after rounding; quantized: error within the bound of its type",
        details=(faults or skipped)[:20],
    )


def _finite_result(file: GGUFFile, findings: _Findings) -> CheckResult:
    bad = findings.infinite
    return CheckResult(
        name="finite",
        file=file.path.name,
        status="failed" if bad else "passed",
        sentence=f"{len(bad)} tensors hold NaN or infinity." if bad else "No NaN, no infinity.",
        details=bad[:20],
    )
