"""A comparison as plain text for the terminal: 80 columns, readable without colour."""

import textwrap
from collections.abc import Iterator, Sequence

from edgemed_benchmarks.compare_values import ComparedArm, Metric
from edgemed_benchmarks.comparison import Comparison, PairedResult
from edgemed_benchmarks.stats import Estimate

_KINDS = {
    "quantization": "quantizations of one model",
    "model": "models on one machine",
    "machine": "one model on two machines",
    "run": "the same again at another time",
    "several": "machine and model both differ",
}


def comparison_text(comparison: Comparison) -> str:
    """Return the arms, what to know before the numbers, and each metric with its pairs and its ranking."""
    return "\n".join(_lines(comparison)) + "\n"


def _lines(comparison: Comparison) -> Iterator[str]:
    yield "What is compared"
    for place, arm in enumerate(comparison.arms, start=1):
        yield from _arm(place, arm)
    if comparison.flags:
        yield ""
        yield "To know before reading the numbers"
        for flag in comparison.flags:
            yield textwrap.fill(flag, 80, initial_indent="  ! ", subsequent_indent="    ")
    for metric in comparison.sides:
        yield ""
        yield from _metric(comparison, metric)


def _arm(place: int, arm: ComparedArm) -> Iterator[str]:
    kind = arm.arm.quantization_type or "type not known"
    yield f"  [{place}] {arm.arm.model_name} {arm.arm.label} ({kind}, {arm.arm.size_bytes / 1e6:,.0f} MB)"
    yield (
        f"      on {arm.machine.machine_id}: {arm.machine.cpu_model}, {arm.machine.physical_cores} cores, "
        f"{arm.machine.total_memory_bytes / 2**30:.1f} GiB; {arm.file}"
    )
    yield (
        f"      model SHA-256 {arm.arm.model_sha256[:12]}…; {arm.ok + arm.suspect + arm.invalid} samples, "
        f"{arm.suspect} suspect, {arm.invalid} invalid"
    )


def _metric(comparison: Comparison, metric: Metric) -> Iterator[str]:
    unit = comparison.sides[metric][0].unit
    under = f" ({metric.item_set})" if metric.item_set else ""
    yield f"{metric.suite}: {metric.name}{under}, {unit}"
    for side in comparison.sides[metric]:
        yield f"  [{side.arm + 1}] {_estimate(side.estimate)}"
    for result in comparison.pairs:
        if result.metric == metric:
            yield from _pair(result)
    for ranking in comparison.rankings:
        if ranking.metric == metric:
            yield f"  {_order(ranking.tiers)}"


def _estimate(estimate: Estimate) -> str:
    if estimate.value is None:
        return estimate.reason
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.4g}, n {estimate.samples}; {estimate.reason}"
    return f"{estimate.value:.4g} ({estimate.low:.4g} to {estimate.high:.4g}), n {estimate.samples}"


def _pair(result: PairedResult) -> Iterator[str]:
    change = "×" if result.scale == "ratio" else "changes by"
    yield f"  [{result.before + 1}] to [{result.after + 1}], {_KINDS[result.kind]}:"
    yield f"      {change} {_estimate(result.estimate)}"
    if result.p_corrected is None:
        yield "      too few items for a test"
    elif result.shown:
        yield f"      a difference is shown (p {result.p_corrected:.2g})"
    else:
        yield f"      no difference is shown: chance alone can do this (p {result.p_corrected:.2g})"
    if result.changed is not None:
        yield (
            f"      {result.changed.right_to_wrong} went from right to wrong, "
            f"{result.changed.wrong_to_right} from wrong to right"
        )
    if result.left_out:
        yield f"      {result.left_out} items left out: on one side only, or asked in other words"
    yield f"      {_detectable(result)}"


def _detectable(result: PairedResult) -> str:
    if result.detectable is None:
        return f"{result.items} items cannot show any difference"
    if result.scale == "ratio":
        return f"{result.items} items cannot show differences under {result.detectable:.1%}"
    if result.unit == "share":
        return f"{result.items} items cannot show differences under {100 * result.detectable:.1f} points"
    return f"{result.items} items cannot show differences under {result.detectable:.3g} {result.unit}"


def _order(tiers: Sequence[Sequence[int]]) -> str:
    if len(tiers) == 1:
        return "Order: none; these items do not tell the arms apart."
    named = ["[" + "] [".join(str(place + 1) for place in tier) + "]" for tier in tiers]
    return "Order: " + " before ".join(named)
