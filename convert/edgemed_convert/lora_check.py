"""Whether base GGUF + LoRA GGUF says what the merged model says: the `adapter` command's own check.

Two numbers decide. The difference of the logits alone would pass a weak adapter with half its strength, so it
is also measured against what the adapter changes at all: a wrong scale, a forgotten layer or a wrong order of
rows is a large part of that, and rounding is not, however weak the adapter is.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgemed_convert.adapter import Adapter, apply_adapters
from edgemed_convert.checkpoint import Checkpoint
from edgemed_convert.export import export_gguf
from edgemed_convert.llama.process import FloatArray, LlamaProcess
from edgemed_convert.output import Progress, no_progress

# Measured with tiny and trained models: an F16 adapter differs by at most 0.0009 of the logits' deviation and
# 0.0013 of the adapter's effect; a scale wrong by 2 % is 0.02 of the effect, one module of 14 left out 0.11.
RELATIVE_LIMIT = 2e-2
SHARE_LIMIT = 1e-2
_ENGINE_NOISE = 1e-4
"""Relative difference that llama.cpp's own rounding makes; an adapter that changes no more is none."""
_SEQUENCES, _LENGTH, _KEPT = 4, 120, 40
"""Random ids; the last positions of each are compared."""


@dataclass(frozen=True)
class AdapterAgreement:
    """How far base + adapter is from the merged model."""

    relative: float
    """Largest difference of a logit, in standard deviations of the merged model's logits."""
    share: float
    """Root mean square of the difference over that of what the adapter changes; 1: as if it were left out."""
    effect: float
    """Root mean square of what the adapter changes, in standard deviations of the merged model's logits."""
    top1_share: float
    positions: int

    @property
    def passed(self) -> bool:
        """Whether both limits are kept; NaN keeps none."""
        close = self.share <= SHARE_LIMIT or self.relative <= _ENGINE_NOISE
        return self.effect > 0 and self.relative <= RELATIVE_LIMIT and close

    @property
    def sentence(self) -> str:
        """The result in words."""
        if not self.effect:
            return "The adapter changes nothing: the merged model answers as the base model does."
        return (
            f"Over {self.positions} positions, base and adapter answer {'' if self.passed else 'not '}as the "
            f"merged model does: logits differ by {self.relative:.1e}, {self.share:.2%} of what the adapter "
            f"changes (limits {RELATIVE_LIMIT:.0e} and {SHARE_LIMIT:.0%})."
        )


def check_adapter(base: Path, adapter: Path, merged: Path, *, process: LlamaProcess) -> AdapterAgreement:
    """Compare a base GGUF with a LoRA GGUF attached with the merged model's GGUF.

    Args:
        base: unquantized, best F32; the noise of a quantized one hides faults.
        adapter: the LoRA GGUF.
        merged: the same base with the adapter merged, of the base's type.

    Raises:
        ModelError: a file cannot be loaded, or the adapter does not belong to the base.
        LlamaCppError: llama.cpp failed or died.
    """
    process.load(base, context_length=_LENGTH)
    sequences = _sequences(process)
    plain = _logits(process, sequences)
    process.load(base, adapter=adapter, context_length=_LENGTH)
    adapted = _logits(process, sequences)
    process.load(merged, context_length=_LENGTH)
    expected = _logits(process, sequences)
    difference, change = _root_mean_square(adapted - expected), _root_mean_square(plain - expected)
    deviation = float(expected.std(dtype=np.float64))
    return AdapterAgreement(
        relative=float(np.abs(adapted - expected).max()) / deviation,
        share=difference / change if change else np.inf,
        effect=change / deviation,
        top1_share=float((adapted.argmax(1) == expected.argmax(1)).mean()),
        positions=len(expected),
    )


def check_against_model(
    model: Checkpoint,
    adapter_folder: Path,
    adapter_gguf: Path,
    *,
    weight: float = 1.0,
    scratch_folder: Path | None = None,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> AdapterAgreement:
    """Compare a LoRA GGUF with the adapter merged into the base model's own weights, both in float32.

    Needs disk for two float32 copies of the model and memory for one.

    Args:
        model: the base model's folder, as it was before any export.
        weight: the one that the LoRA GGUF was written with.

    Raises:
        EdgemedError: as `export_gguf` and `check_adapter` say.
    """
    merged = apply_adapters(model, [Adapter.open(adapter_folder, weight=weight)], progress)
    with tempfile.TemporaryDirectory(prefix="edgemed-adapter-", dir=scratch_folder) as folder:
        base_path, merged_path = Path(folder, "base.gguf"), Path(folder, "merged.gguf")
        for one, path in ((model, base_path), (merged, merged_path)):
            export_gguf(one, path, file_type="F32", prove_tokenizer=False, progress=progress)
        with LlamaProcess(threads=threads) as process:
            return check_adapter(base_path, adapter_gguf, merged_path, process=process)


def _sequences(process: LlamaProcess) -> list[list[int]]:
    table = process.token_attributes()
    ordinary = np.flatnonzero(~(table.is_control | table.is_eog))
    generator = np.random.default_rng(0)
    return [generator.choice(ordinary, _LENGTH).tolist() for _ in range(_SEQUENCES)]


def _logits(process: LlamaProcess, sequences: list[list[int]]) -> FloatArray:
    return np.concatenate([process.logits(ids, start=_LENGTH - _KEPT) for ids in sequences])


def _root_mean_square(numbers: FloatArray) -> float:
    return float(np.sqrt(np.mean(np.square(numbers, dtype=np.float64))))
