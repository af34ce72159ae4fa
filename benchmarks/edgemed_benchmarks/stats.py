"""What measured values allow one to say: medians, quantiles, rates, shares and verdicts, with their limits.

Pure Python. Every function with chance in it takes a seed and gives the same result on every machine. Values
of samples that are not valid are left out by the caller. No value is ever made up: where too few samples were
taken, the part that cannot be known is `None` and `reason` says why.
"""

import functools
import itertools
import math
import random
from collections.abc import Callable, Hashable, Iterable, Sequence
from statistics import NormalDist
from typing import Literal, NamedTuple, TypeVar

from edgemed.metrics import mean
from edgemed_benchmarks.distributions import binomial_at_most, log_binomial, solve, student_t

Piece = TypeVar("Piece")

RESAMPLES = 2000
LAST_LOOK = 400
"""Samples up to which looking after each of them is reckoned with; a longer run takes its verdict once."""
_LONGEST = 20_000
"""Samples; ends the search for a number of samples, far above what a run can take."""
_NO_CHANCE = 1e-12


class Estimate(NamedTuple):
    """A value with its two-sided interval, in the unit of the samples."""

    value: float | None
    low: float | None
    high: float | None
    samples: int
    reason: str = ""
    """Why `value`, `low` or `high` is None, in words for the reader; empty when none is."""


class EarlyVerdict(NamedTuple):
    """Whether a share of all answers stays within a limit."""

    verdict: Literal["yes", "no", "undecided"]
    samples: int
    misses: int
    more: int
    """How many more samples bring a yes when none of them misses; 0 unless undecided."""


def median(values: Sequence[float], *, confidence: float = 0.95) -> Estimate:
    """Return the median with its order-statistic interval, which holds for every distribution.

    The interval needs 6 samples at 95 %; of 10 it is x(2) to x(9). Source: Hahn and Meeker, Statistical
    Intervals, 1991, section 5.2.
    """
    return quantile(values, 0.5, confidence=confidence)


def quantile(values: Sequence[float], share: float, *, confidence: float = 0.95) -> Estimate:
    """Return the value below which a share of the samples lies, with its order-statistic interval.

    The value is interpolated as numpy does by default (Hyndman and Fan's type 7). It is None as long as the
    greatest (or smallest) of so many samples is no bound of the quantile at this confidence: no p90 below 29
    samples, no p95 below 59, no p99 below 299. An end of the interval is None where no sample can bound it.

    Args:
        values: in any order, at least one for a value.
        share: 0.5 for the median, 0.95 for the p95.
        confidence: of the two-sided interval.
    """
    ordered = sorted(values)
    count = len(ordered)
    needed = 1 if share == 0.5 else samples_for_quantile(share, confidence=confidence)
    if count < needed:
        extreme = f", max = {ordered[-1]:.4g}" if ordered and share > 0.5 else ""
        return Estimate(None, None, None, count, f"not enough data: {count} of {needed} samples{extreme}")
    low, high = _bounding_ranks(count, share, (1 - confidence) / 2)
    reason = "" if low and high else f"the interval needs {_samples_for_interval(share, confidence)} samples"
    return Estimate(
        _interpolated(ordered, share),
        ordered[low - 1] if low else None,
        ordered[high - 1] if high else None,
        count,
        reason,
    )


def samples_for_quantile(share: float, *, confidence: float = 0.95) -> int:
    """Return the least number of samples at which a quantile may be spoken of: 29 for p90, 59 for p95.

    Then the extreme sample bounds the quantile: with p95, 0.95^n <= 0.05.
    """
    return math.ceil(round(math.log(1 - confidence) / math.log(max(share, 1 - share)), 9))


def rate(
    amounts: Sequence[float],
    seconds: Sequence[float],
    *,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Estimate:
    """Return the sum of amounts divided by the sum of seconds, with a 95 % bootstrap interval.

    Never the mean of single rates: one short sample would count as much as a long one, and noise makes it
    greater. Whole samples (or groups of them) are drawn anew.

    Args:
        amounts: tokens, bytes or answers of each sample.
        seconds: of the same samples.
        groups: samples of one group are not independent.
        seed: of the resampling.
    """
    pairs = list(zip(amounts, seconds, strict=True))
    if sum(seconds) <= 0:
        return Estimate(None, None, None, len(pairs), "no time was measured")
    return bootstrap(pairs, _ratio_of_sums, groups=groups, seed=seed)


def mean_estimate(
    values: Sequence[float], *, groups: Sequence[Hashable] | None = None, seed: int = 0
) -> Estimate:
    """Return the mean with a 95 % bootstrap interval over items, or over groups of them."""
    return bootstrap(values, mean, groups=groups, seed=seed)


def bootstrap(
    items: Sequence[Piece],
    statistic: Callable[[Sequence[Piece]], float],
    *,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Return a statistic of the items with its 95 % interval over items, or whole groups, drawn anew.

    Plain percentile intervals are too narrow when samples are few. These are widened as Hesterberg describes
    (What Teachers Should Know About the Bootstrap, 2015, section 4.3, "expanded percentile interval").

    Args:
        items: one for each sample.
        statistic: takes a list of items in any order.
        groups: one key for each item; items with the same key are drawn together.
        seed: the same seed gives the same interval on every machine.
        resamples: sets drawn.
    """
    clusters = _clusters(items, groups)
    if not items:
        return Estimate(None, None, None, 0, "no samples")
    value = statistic(items)
    if len(clusters) < 3:
        what = "samples" if groups is None else "groups"
        return Estimate(value, None, None, len(items), f"the interval needs 3 independent {what}")
    chance = random.Random(seed)
    alone = len(clusters) == len(items)
    drawn = []
    for _ in range(resamples):
        if alone:
            drawn.append(statistic(chance.choices(items, k=len(items))))
        else:
            parts = chance.choices(clusters, k=len(clusters))
            drawn.append(statistic([item for part in parts for item in part]))
    drawn.sort()
    tail = _widened_tail(len(clusters))
    return Estimate(value, _interpolated(drawn, tail), _interpolated(drawn, 1 - tail), len(items))


def wilson(hits: int, samples: int, *, confidence: float = 0.95) -> Estimate:
    """Return a share with its score interval (Wilson 1927), for independent yes-or-no samples."""
    if samples == 0:
        return Estimate(None, None, None, 0, "no samples")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = hits / samples
    centre = (share + z * z / (2 * samples)) / (1 + z * z / samples)
    half = z / (1 + z * z / samples) * math.sqrt(share * (1 - share) / samples + (z / (2 * samples)) ** 2)
    low = 0.0 if hits == 0 else centre - half
    high = 1.0 if hits == samples else centre + half
    return Estimate(share, low, high, samples)


def upper_bound(hits: int, samples: int, *, confidence: float = 0.95) -> float:
    """Return the greatest share that so few hits still allow: 0 of 30 gives 0.095, 0 of 300 gives 0.01.

    One-sided and exact (Clopper and Pearson 1934); 1.0 of no samples.
    """
    if hits >= samples:
        return 1.0
    return solve(lambda share: binomial_at_most(hits, samples, share) - (1 - confidence))


def early_stopping(
    values: Iterable[float],
    limit: float,
    *,
    share: float = 0.9,
    confidence: float = 0.95,
    looks: Literal["once", "each_sample"] = "once",
) -> EarlyVerdict:
    """Return whether a share of all answers stays within a limit, as MLPerf's early stopping decides.

    yes: had the machine kept the limit in exactly this share or less, so few misses would come in at most 5 %
    of all runs. no: the same for so many misses. The least number of samples for a yes with 0, 1, 2, 3 misses
    is 29, 46, 61, 76 (p90 at 95 %). Source: MLCommons, MLPerf inference rules, appendix "Early stopping".

    This holds for one look, at a number of samples that was fixed before. Who looks after each sample and
    stops at the first yes errs in 21 % of all runs of up to 400 samples. `looks="each_sample"` keeps the
    promise for that too, up to `LAST_LOOK` samples, and needs more of them: 45, 65, 82, 98. The samples must
    be independent: different questions, not one question many times.

    Args:
        values: one for each valid sample, in the limit's unit; infinite for an answer that never came.
        limit: a value equal to it is no miss.
        share: of all answers that must stay within the limit.
        confidence: at which yes and no are said.
        looks: how often the verdict is taken on the way.
    """
    taken = list(values)
    misses = sum(not value <= limit for value in taken)
    return early_verdict(len(taken), misses, share=share, confidence=confidence, looks=looks)


def early_verdict(
    samples: int,
    misses: int,
    *,
    share: float = 0.9,
    confidence: float = 0.95,
    looks: Literal["once", "each_sample"] = "once",
) -> EarlyVerdict:
    """Return what `early_stopping` says where samples and misses are counted already."""
    error = 1 - confidence
    yes_error = error if looks == "once" else _error_of_each_look(1 - share, error, "yes")
    no_error = error if looks == "once" else _error_of_each_look(1 - share, error, "no")
    if samples and binomial_at_most(misses, samples, 1 - share) <= yes_error:
        return EarlyVerdict("yes", samples, misses, 0)
    if misses and 1 - binomial_at_most(misses - 1, samples, 1 - share) <= no_error:
        return EarlyVerdict("no", samples, misses, 0)
    needed = _samples_for_yes(misses, 1 - share, yes_error)
    return EarlyVerdict("undecided", samples, misses, max(1, needed - samples))


def samples_for_yes(misses: int, *, share: float = 0.9, confidence: float = 0.95) -> int:
    """Return how many samples a yes needs with so many misses: 29, 46, 61, 76, … for p90 at 95 %."""
    return _samples_for_yes(misses, 1 - share, 1 - confidence)


def abba_order(arms: int, blocks: int) -> list[int]:
    """Return the order in which arms are measured: there and back again, so that slow drift hits all alike.

    Two arms and 4 blocks give 0 1 1 0 0 1 1 0. What grows evenly with time falls out of the difference
    between arms when `blocks` is even.

    Args:
        arms: how many things are compared.
        blocks: how often each is measured.
    """
    return [
        arm for block in range(blocks) for arm in (range(arms) if block % 2 == 0 else reversed(range(arms)))
    ]


def _ratio_of_sums(pairs: Sequence[tuple[float, float]]) -> float:
    seconds = math.fsum(pair[1] for pair in pairs)
    return math.fsum(pair[0] for pair in pairs) / seconds if seconds > 0 else math.inf


def _interpolated(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    if below + 1 >= len(ordered):
        return ordered[-1]
    return ordered[below] + (place - below) * (ordered[below + 1] - ordered[below])


def _bounding_ranks(count: int, share: float, tail: float) -> tuple[int, int]:
    """Return the ranks (from 1) of the samples between which the quantile lies; 0: there is none."""
    cumulated, low, high = 0.0, 0, 0
    for below in range(count):
        # The quantile is under x(rank) when fewer than `rank` samples lie below it.
        cumulated += math.exp(log_binomial(below, count, share))
        if cumulated <= tail:
            low = below + 1
        if not high and 1 - cumulated <= tail:
            high = below + 1
    return low, high


def _samples_for_interval(share: float, confidence: float) -> int:
    return samples_for_quantile(share, confidence=(1 + confidence) / 2)


def _clusters(items: Sequence[Piece], groups: Sequence[Hashable] | None) -> list[list[Piece]]:
    if groups is None:
        return [[item] for item in items]
    together: dict[Hashable, list[Piece]] = {}
    for item, group in zip(items, groups, strict=True):
        together.setdefault(group, []).append(item)
    return list(together.values())


def _widened_tail(count: int) -> float:
    spread = math.sqrt(count / (count - 1))
    return NormalDist().cdf(-spread * student_t(0.025, count - 1))


@functools.cache
def _samples_for_yes(misses: int, miss_share: float, error: float) -> int:
    samples = misses + 1
    while samples < _LONGEST and binomial_at_most(misses, samples, miss_share) > error:
        samples += 1
    return samples


@functools.cache
def _error_of_each_look(miss_share: float, allowed: float, verdict: Literal["yes", "no"]) -> float:
    """Return the error to allow at each look so that all looks together err in `allowed` of all runs.

    The looks depend on one another; the chance that any of them errs is counted exactly, at the miss share
    where it is greatest. 0.2 s on a laptop, once in a process.
    """
    # The chance of so many misses or fewer (yes) or more (no), for each look: tails[samples][misses].
    tails: list[list[float]] = [[1.0]]
    for samples in range(1, LAST_LOOK + 1):
        chances = [math.exp(log_binomial(misses, samples, miss_share)) for misses in range(samples + 1)]
        if verdict == "yes":
            tails.append(list(itertools.accumulate(chances)))
        else:
            tails.append(list(itertools.accumulate(reversed(chances)))[::-1])
    return solve(
        lambda error: allowed - _error_of_all_looks(miss_share, error, tails), high=allowed, within=1e-6
    )


def _error_of_all_looks(miss_share: float, error: float, tails: Sequence[Sequence[float]]) -> float:
    undecided = {0: 1.0}
    decided = 0.0
    for tail in tails[1:]:
        after: dict[int, float] = {}
        for misses, chance in undecided.items():
            after[misses] = after.get(misses, 0.0) + chance * (1 - miss_share)
            after[misses + 1] = after.get(misses + 1, 0.0) + chance * miss_share
        undecided = {}
        for misses, chance in after.items():
            if tail[misses] <= error:
                decided += chance
            elif chance > _NO_CHANCE:
                undecided[misses] = chance
    return decided
