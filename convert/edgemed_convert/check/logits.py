"""Logits of llama.cpp against those of transformers on the merged weights, for unquantized files.

The noise of a quantized file hides real faults (rope factors missing: 0.11 of the logits' standard deviation;
Q8_0's own noise: 0.05 to 0.23), so those are never compared here. Called by `gate.py`.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgemed import machine
from edgemed.check_report import CheckResult, CheckStatus
from edgemed.errors import StorageError
from edgemed_convert.check import probe_strings
from edgemed_convert.check.first_layers import (
    first_layers_bytes,
    first_layers_config,
    first_layers_weights,
    layer_count,
    write_first_layers,
)
from edgemed_convert.check.gguf_file import GGUFFile
from edgemed_convert.check.model_config import ModelConfig
from edgemed_convert.check.reference_logits import ReferenceModel
from edgemed_convert.check.tensor_sources import TensorSources
from edgemed_convert.llama.process import LlamaProcess
from edgemed_convert.output import check_free_space
from edgemed_convert.safetensors_file import FloatArray, Weights

# Measured with right files and planted faults (docs/experiments.md): the smallest fault but a wrong epsilon
# (3e-4, for `metadata.py`) is 0.11. At F32 the difference is llama.cpp's own rounding: 3e-6 to 8e-6 for
# trained models and for random ones up to 3,072 wide, up to 1.2e-4 for random ones whose attention is badly
# conditioned; those reach 3e-2 at F16. bfloat16 rounds 8 times as coarsely: its real judge are the first
# layers in float32.
_RELATIVE_LIMITS = {"F32": 5e-4, "F16": 5e-2, "BF16": 0.4}
_KL_LIMITS = {"F16": 1e-3, "BF16": 64e-3}
# GPT-2 and Gemma calculate their activation from a table of half-precision numbers in llama.cpp: 1.8e-3.
_TABLE_FAMILIES = {"gpt2", "gemma", "gemma3"}
_TABLE_RELATIVE_LIMIT = 5e-3
_LONG_RELATIVE_LIMIT = 1e-2
"""Angles of far positions are rounded more: 1.0e-3 at position 4,096, 0.1 and more with wrong factors."""
_LONGEST_TOKENS = 4352
"""A window of 4,096 and something behind it."""
_KEPT_POSITIONS = 64
"""Of a long sequence only the end is compared."""
_SPARE_BYTES = 2**30


@dataclass(frozen=True)
class Prompts:
    """Token ids to compare logits on."""

    short: Sequence[Sequence[int]]
    """Random ids, text of several languages, chat; all positions are compared."""
    long: Sequence[Sequence[int]] = ()
    """Past a window or past the context before rope scaling; the last positions are compared."""


@dataclass(frozen=True)
class Agreement:
    """How far two models' logits are apart."""

    relative: float
    """Largest difference over the standard deviation of the reference's logits."""
    mean_kl_nats: float
    top1_share: float
    positions: int


class Accumulator:
    """Adds up differences, position by position, without keeping logits."""

    def __init__(self) -> None:
        self._largest = 0.0
        self._kl = self._same = 0.0
        self._sum = self._squares = 0.0
        self._numbers = self._positions = 0

    def add(self, reference: FloatArray, found: FloatArray) -> None:
        """Take in the logits of some positions; both of shape (positions, vocabulary)."""
        width = min(reference.shape[1], found.shape[1])
        one, other = reference[:, :width].astype(np.float64), found[:, :width].astype(np.float64)
        difference = np.abs(one - other).max(initial=0.0)
        # NaN is never equal: it must count as the worst.
        self._largest = max(self._largest, float(difference) if np.isfinite(difference) else np.inf)
        self._sum += float(one.sum())
        self._squares += float((one * one).sum())
        self._numbers += one.size
        self._positions += len(one)
        self._same += float((one.argmax(-1) == other.argmax(-1)).sum())
        log_one, log_other = _log_softmax(one), _log_softmax(other)
        self._kl += float((np.exp(log_one) * (log_one - log_other)).sum())

    def result(self) -> Agreement:
        mean = self._sum / self._numbers
        deviation = np.sqrt(max(0.0, self._squares / self._numbers - mean * mean))
        return Agreement(
            relative=self._largest / float(deviation) if deviation else np.inf,
            mean_kl_nats=self._kl / self._positions,
            top1_share=self._same / self._positions,
            positions=self._positions,
        )


def _log_softmax(
    logits: NDArray[np.float64],
) -> NDArray[np.float64]:
    shifted = logits - logits.max(-1, keepdims=True)
    numbers: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return numbers


def check_logits(
    config: ModelConfig,
    weights: Weights,
    file: GGUFFile,
    process: LlamaProcess,
    prompts: Prompts,
    *,
    whole: ReferenceModel | None,
    scratch_folder: Path | None = None,
) -> list[CheckResult]:
    """Compare an unquantized file with transformers: whole where it fits, and its first layers in float32.

    Args:
        whole: the whole model in transformers, None where it does not fit into this machine.
    """
    results = []
    type_name = _main_type(file)
    if whole is not None:
        process.load(file.path, context_length=_context(config, prompts.short))
        agreement = _agreement(whole.logits, process, prompts.short, start=_all)
        results.append(_result("logits", file, agreement, "the whole model", _limit(config, type_name)))
    if whole is not None and type_name == "F32":
        # All that its first layers could still show is what happens far from the beginning.
        prompts = Prompts(short=(), long=prompts.long)
    if prompts.short or prompts.long:
        results += _first_layers(config, weights, file, process, prompts, scratch_folder)
    return results


def fits_whole(weights: Weights, file: GGUFFile) -> bool:
    """Whether this machine has the memory to run the whole model in both programs."""
    parameters = sum(prod(tensor.shape) for tensor in weights.values())
    return 4 * parameters + file.size_bytes + _SPARE_BYTES <= machine.available_memory_bytes()


def make_prompts(
    config: ModelConfig, tokens: int, avoid: Sequence[int], texts: Sequence[Sequence[int]]
) -> Prompts:
    """Return what logits are compared on: random ids, texts, and a sequence past what changes with length.

    Args:
        avoid: control tokens, which random ids leave out.
        texts: token ids of prompts and of a conversation.
    """
    longest = min(config.ignored_window or config.context, config.context)
    random = probe_strings.random_ids(tokens, length=min(120, longest), avoid=avoid)
    short = [*random, *(ids[:longest] for ids in texts if ids)]
    edges = []
    if config.sliding_window and not config.ignored_window:
        edges.append(config.sliding_window + config.sliding_window // 2)
    if config.rope.kind == "longrope":
        edges.append(config.original_context + 1)
    lengths = [length for length in edges if 120 < length <= min(longest, _LONGEST_TOKENS)]
    long = [
        probe_strings.random_ids(tokens, sequences=1, length=length, avoid=avoid, seed=length)[0]
        for length in lengths
    ]
    return Prompts(short=short, long=long)


def not_run(file: str, reason: str, name: str = "logits") -> CheckResult:
    """Return the result of a comparison that could not be made."""
    return CheckResult(name=name, file=file, status="not_run", sentence=reason)


def _first_layers(
    config: ModelConfig,
    weights: Weights,
    file: GGUFFile,
    process: LlamaProcess,
    prompts: Prompts,
    scratch_folder: Path | None,
) -> list[CheckResult]:
    layers = layer_count(config)
    small_weights = first_layers_weights(weights, layers)
    size = first_layers_bytes(file, layers)
    needed = 4 * sum(prod(tensor.shape) for tensor in small_weights.values()) + size + _SPARE_BYTES
    name = "logits_first_layers"
    if needed > machine.available_memory_bytes():
        reason = f"The first {layers} layers need {needed / 1e9:.1f} GB of free memory."
        return [not_run(file.path.name, reason, name)]
    raw = first_layers_config(config, layers)
    small = ModelConfig(raw)
    reference = ReferenceModel(raw, small_weights, stored_as=_stored_types(config, weights, file))
    what = f"the first {layers} layers and the head, in float32"
    with tempfile.TemporaryDirectory(prefix="edgemed-check-", dir=scratch_folder) as folder:
        try:
            check_free_space(Path(folder), size)
        except StorageError as error:
            return [not_run(file.path.name, error.message, name)]
        path = Path(folder, "first-layers.gguf")
        write_first_layers(file, path, layers)
        results = []
        if prompts.short:
            process.load(path, context_length=_context(config, prompts.short))
            agreement = _agreement(reference.logits, process, prompts.short, start=_all)
            results.append(_result(name, file, agreement, what, _limit(small, "F32")))
        if prompts.long:
            process.load(path, context_length=max(len(ids) for ids in prompts.long))
            agreement = _agreement(reference.logits, process, prompts.long, start=_last)
            results.append(
                _result("logits_far", file, agreement, f"long texts in {what}", _Limit(_LONG_RELATIVE_LIMIT))
            )
    return results


def _all(ids: Sequence[int]) -> int:
    return 0


def _last(ids: Sequence[int]) -> int:
    return max(0, len(ids) - _KEPT_POSITIONS)


def _stored_types(config: ModelConfig, weights: Weights, file: GGUFFile) -> dict[str, str]:
    """Return what each weight of the model was rounded to in the file."""
    sources = TensorSources(config, weights)
    return {source.name: tensor.type_name for tensor in file.tensors if (source := sources.find(tensor.name))}


def _main_type(file: GGUFFile) -> str:
    """Return the least exact type in the file."""
    return next(name for name in ("BF16", "F16", "F32") if name in file.tensor_types)


def _context(config: ModelConfig, sequences: Sequence[Sequence[int]]) -> int:
    """Return a context that holds the sequences, never past the context before rope scaling."""
    return min(config.original_context, max(64, max(len(ids) for ids in sequences)))


Logits = Callable[..., FloatArray]


def _agreement(
    reference: Logits,
    process: LlamaProcess,
    sequences: Sequence[Sequence[int]],
    *,
    start: Callable[[Sequence[int]], int],
) -> Agreement:
    accumulator = Accumulator()
    for ids in sequences:
        expected = reference(ids, start=start(ids))
        row = 0
        for part in process.logits_in_parts(ids, start=start(ids)):
            accumulator.add(expected[row : row + len(part)], part)
            row += len(part)
    return accumulator.result()


@dataclass(frozen=True)
class _Limit:
    relative: float
    mean_kl_nats: float | None = None


def _limit(config: ModelConfig, type_name: str) -> _Limit:
    if type_name == "F32" and config.architecture in _TABLE_FAMILIES:
        return _Limit(_TABLE_RELATIVE_LIMIT)
    return _Limit(_RELATIVE_LIMITS[type_name], _KL_LIMITS.get(type_name))


def _result(
    name: str,
    file: GGUFFile,
    agreement: Agreement,
    what: str,
    limit: _Limit,
) -> CheckResult:
    kl_limit = limit.mean_kl_nats
    good = agreement.relative <= limit.relative and (kl_limit is None or agreement.mean_kl_nats <= kl_limit)
    status: CheckStatus = "passed" if good else "failed"
    return CheckResult(
        name=name,
        file=file.path.name,
        status=status,
        sentence=(
            f"Over {agreement.positions} positions of {what}, logits are "
            f"{'' if good else 'not '}those of transformers: they differ by {agreement.relative:.1e}."
        ),
        numbers={
            "relative_difference": agreement.relative,
            "mean_kl_nats": agreement.mean_kl_nats,
            "top1_share": agreement.top1_share,
            "positions": agreement.positions,
        },
        limit=f"relative difference ≤ {limit.relative:g}" + (f", mean KL ≤ {kl_limit:g}" if kl_limit else ""),
    )
