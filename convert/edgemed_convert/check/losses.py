"""What a quantized file lost against its unquantized parent, on the gate's own texts, bounded for each type.

This never proves a file right: its noise hides faults (`tensors.py` and `logits.py` find those). It tells
whether a sound file is still good for anything, and what the type costs. Called by `gate.py`.
"""

from pathlib import Path

from edgemed.check_report import CheckResult, CheckStatus, QuantizationLoss
from edgemed_convert.check.divergence import Divergence, DivergenceMeter
from edgemed_convert.check.gguf_file import GGUFFile
from edgemed_convert.check.quantization_label import label_of, type_of_label

# Mean divergence in nats, and the share of positions with the same first choice. The project's own 8 M model,
# as small and as sensitive as trained ones get, loses an eighth of these in English (Q4_K_M: 0.044, 85 %): a
# file beyond them answers otherwise than its parent. Keys are the types of most weights: Q4_K of Q4_K_M.
BOUNDS = {
    "Q8_0": (0.02, 0.95), "Q6_K": (0.05, 0.92), "Q5_K": (0.12, 0.88), "Q5_1": (0.12, 0.88),
    "Q5_0": (0.15, 0.86), "Q4_K": (0.35, 0.78), "IQ4_NL": (0.35, 0.78), "IQ4_XS": (0.35, 0.78),
    "Q4_1": (0.5, 0.72), "Q4_0": (0.5, 0.72), "MXFP4": (0.8, 0.65), "NVFP4": (0.8, 0.65), "Q3_K": (1.0, 0.6),
    "IQ3_S": (1.0, 0.6), "IQ3_XXS": (1.5, 0.5), "Q2_K": (2.5, 0.4), "IQ2_S": (2.5, 0.4),
    "IQ2_XS": (2.5, 0.4), "IQ2_XXS": (3.0, 0.35),
}  # fmt: skip
_OTHER_BOUND = (6.0, 0.1)
_LEARNED_SHARE = 0.25
"""A model that knows the text has a perplexity below this share of its vocabulary's size."""


def check_loss(
    file: GGUFFile, meter: DivergenceMeter, parent: Path, *, text: str
) -> tuple[CheckResult, QuantizationLoss]:
    """Measure one quantized file.

    Args:
        text: the name of what the meter reads, such as "English".

    Raises:
        ModelError: it cannot be loaded, or its vocabulary is not the parent's.
    """
    found = meter.measure(file.path)
    label = label_of(file)
    kl_bound, top1_bound = BOUNDS.get(type_of_label(label), _OTHER_BOUND)
    learned = found.parent_perplexity < _LEARNED_SHARE * file.token_count
    good = found.mean_kl <= kl_bound and found.top1_agreement >= top1_bound
    status: CheckStatus = "passed" if good or not learned else "failed"
    result = CheckResult(
        name="quantization_loss",
        file=file.path.name,
        status=status,
        sentence=_sentence(found, parent, text, learned=learned),
        numbers={
            "mean_kl_nats": found.mean_kl,
            "percentile_99_kl_nats": found.kl_99,
            "highest_kl_nats": found.max_kl,
            "top1_share": found.top1_agreement,
            "positions": found.positions,
        },
        limit=f"mean KL ≤ {kl_bound:g}, same first choice ≥ {top1_bound:.0%}" if learned else "",
        details=[_worst(found)],
    )
    return result, _loss(file, found, label, parent, text)


def _sentence(found: Divergence, parent: Path, text: str, *, learned: bool) -> str:
    said = (
        f"Against {parent.name}, {text}: mean KL {found.mean_kl:.2g} nats, same first choice at "
        f"{found.top1_agreement:.1%} of {found.positions} positions."
    )
    if learned:
        return said
    return f"{said} No bound: the model itself does not know such text."


def _worst(found: Divergence) -> str:
    worst = found.worst
    return (
        f'worst token ({worst.kl:.2g} nats): after "…{_shown(worst.before[-40:])}" the parent writes '
        f'"{_shown(worst.parent_choice)}", the file "{_shown(worst.quantized_choice)}"'
    )


def _shown(text: str) -> str:
    return text.encode("unicode_escape").decode("ascii")


def _loss(file: GGUFFile, found: Divergence, label: str, parent: Path, text: str) -> QuantizationLoss:
    return QuantizationLoss(
        file=file.path.name,
        parent=parent.name,
        text=text,
        quantization_type=label,
        bits_per_weight=file.bits_per_weight,
        size_bytes=file.size_bytes,
        mean_kl_nats=found.mean_kl,
        mean_kl_uncertainty_nats=found.mean_kl_uncertainty,
        percentile_99_kl_nats=found.kl_99,
        highest_kl_nats=found.max_kl,
        top1_share=found.top1_agreement,
        parent_perplexity=found.parent_perplexity,
        perplexity=found.perplexity,
        scored_tokens=found.positions,
    )
