"""What `compare` finds: the arms side by side, their differences, and what these differences can carry."""

from typing import Literal

import msgspec

from edgemed_benchmarks.compare_values import ArmValues, ComparedArm, Metric, MetricValues, Scale
from edgemed_benchmarks.paired_stats import Flips
from edgemed_benchmarks.stats import Estimate

Kind = Literal["quantization", "model", "machine", "run", "several"]
"""In what two arms differ; `run`: in nothing but the time, `several`: in machine and model."""


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """One arm's value of one metric, over all its own items."""

    arm: int
    unit: str
    estimate: Estimate
    """The median of times, Σtokens/Σseconds of rates, the mean of qualities, with its 95 % interval."""


class PairedResult(msgspec.Struct, frozen=True, kw_only=True):
    """One metric of two arms on the same items: what changed from `before` to `after`."""

    metric: Metric
    kind: Kind
    before: int
    after: int
    """Indices into `Comparison.arms`."""
    scale: Scale
    unit: str
    items: int
    left_out: int
    """Items that only one of both has, or that were asked in other words."""
    estimate: Estimate
    """`after - before`, or the geometric mean of `after / before`."""
    p: float | None
    """None: too few items for a test."""
    p_corrected: float | None
    """After Holm, over all pairs of the metric."""
    changed: Flips | None
    """Where items are right or wrong."""
    detectable: float | None
    """The least true difference (or ratio - 1) that so many items show in 8 of 10 runs."""

    @property
    def shown(self) -> bool:
        """Whether there is a difference beyond chance, at 95 % over all pairs of the metric."""
        return self.p_corrected is not None and self.p_corrected < 0.05


class Ranking(msgspec.Struct, frozen=True, kw_only=True):
    """Arms by one metric, best first; those that chance may have ordered stand together."""

    metric: Metric
    tiers: list[list[int]]


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """All of it; `arms` are what the indices count in."""

    arms: list[ComparedArm]
    sides: dict[Metric, list[Side]]
    pairs: list[PairedResult]
    rankings: list[Ranking]
    flags: list[str]
    """Sentences the reader must see before the numbers."""


def values_of(arm: ArmValues, metric: Metric) -> MetricValues:
    """Return what an arm got; no items where it has none of this metric."""
    return arm.metrics.get(metric, MetricValues(scale="difference", higher_is_better=None, unit="", items={}))
