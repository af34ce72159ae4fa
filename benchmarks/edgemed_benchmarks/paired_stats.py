"""Two arms asked the same questions: differences, intervals, tests, and what could have been seen at all."""

import math
import random
from collections.abc import Hashable, Sequence
from statistics import NormalDist
from typing import NamedTuple

from edgemed_benchmarks.stats import Estimate, bootstrap, mean_estimate

_FLIPS = 10_000


class Flips(NamedTuple):
    """How yes-or-no results of the same items changed from one arm to the other."""

    right_to_wrong: int
    wrong_to_right: int
    samples: int

    @property
    def discordance(self) -> float:
        """Share of the items whose result changed."""
        return (self.right_to_wrong + self.wrong_to_right) / self.samples if self.samples else 0.0


def flips(before: Sequence[bool], after: Sequence[bool]) -> Flips:
    """Return how many results changed each way; both in the same order of items."""
    pairs = list(zip(before, after, strict=True))
    return Flips(
        sum(first and not second for first, second in pairs),
        sum(second and not first for first, second in pairs),
        len(pairs),
    )


def mcnemar(changed: Flips) -> float:
    """Return the exact two-sided p of McNemar's test (1947), from the binomial; 1.0 when nothing changed."""
    total = changed.right_to_wrong + changed.wrong_to_right
    fewer = min(changed.right_to_wrong, changed.wrong_to_right)
    tail = sum(math.comb(total, count) for count in range(fewer + 1))
    return min(1.0, 2 * tail / (1 << total))


def paired_difference(
    before: Sequence[float],
    after: Sequence[float],
    *,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Estimate:
    """Return the mean of `after - before` with its 95 % bootstrap interval over items, or groups of them.

    Args:
        before: one value for each item.
        after: of the same items in the same order.
        groups: items of one group (one document, one pair of twins) are drawn together.
        seed: of the bootstrap.
    """
    return mean_estimate(differences(before, after), groups=groups, seed=seed)


def paired_ratio(
    before: Sequence[float],
    after: Sequence[float],
    *,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Estimate:
    """Return the geometric mean of `after / before` with its 95 % interval, for times and rates.

    Raises:
        ValueError: a value is not greater than 0.
    """
    logs = log_ratios(before, after)
    found = bootstrap(logs, _mean, groups=groups, seed=seed)
    value, low, high = (None if part is None else math.exp(part) for part in found[:3])
    return Estimate(value, low, high, found.samples, found.reason)


def differences(before: Sequence[float], after: Sequence[float]) -> list[float]:
    """Return `after - before` of each item."""
    return [second - first for first, second in zip(before, after, strict=True)]


def log_ratios(before: Sequence[float], after: Sequence[float]) -> list[float]:
    """Return the logarithm of `after / before` of each item; all must be greater than 0."""
    return [math.log(second) - math.log(first) for first, second in zip(before, after, strict=True)]


def sign_flip_test(
    differences: Sequence[float], *, groups: Sequence[Hashable] | None = None, seed: int = 0
) -> float:
    """Return the two-sided p that differences this far from 0 come by chance, each sign being as likely.

    All items of a group change sign together. Of yes-or-no results without groups it is McNemar's test. Up to
    13 groups every combination of signs is counted, above that 10,000 drawn ones (Fisher 1935; Ernst 2004).
    """
    sums: dict[Hashable, float] = {}
    for place, difference in enumerate(differences):
        key = place if groups is None else groups[place]
        sums[key] = sums.get(key, 0.0) + difference
    parts = [part for part in sums.values() if part]
    found = abs(math.fsum(parts)) * (1 - 1e-12)
    if len(parts) <= 13:
        totals = [0.0]
        for part in parts:
            totals = [total + sign * part for total in totals for sign in (-1, 1)]
        return sum(abs(total) >= found for total in totals) / len(totals)
    chance = random.Random(seed)
    whole = sum(parts)
    reached = 0
    for _ in range(_FLIPS):
        signs = chance.getrandbits(len(parts))
        turned = sum(part for place, part in enumerate(parts) if signs >> place & 1)
        reached += abs(whole - 2 * turned) >= found
    return (reached + 1) / (_FLIPS + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p values corrected for their number, in their order (Holm 1979): all stay right together."""
    corrected = [1.0] * len(p_values)
    greatest = 0.0
    for done, place in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        greatest = max(greatest, min(1.0, (len(p_values) - done) * p_values[place]))
        corrected[place] = greatest
    return corrected


def paired_samples_needed(
    difference: float, discordance: float, *, power: float = 0.8, confidence: float = 0.95
) -> int | None:
    """Return how many items show a difference between two shares.

    1,567 show 2 points where 8 % of the results change. Source: Miettinen 1968; Connett, Smith and McHugh
    1987. None where the difference is greater than the share of changed results, which cannot be.
    """
    if not 0 < difference <= discordance:
        return None
    critical, reached = _normal_quantiles(power, confidence)
    spread = critical * math.sqrt(discordance) + reached * math.sqrt(discordance - difference**2)
    return round((spread / difference) ** 2)


def paired_detectable_difference(
    samples: int, discordance: float, *, power: float = 0.8, confidence: float = 0.95
) -> float | None:
    """Return the least true difference between two shares that so many items show in 80 % of all runs.

    With 100 items and 8 % changed results it is 7.8 points. Where even a difference as great as the share of
    changed results would not show, that share is taken as great as is needed, all changes going one way: the
    7.7 points of 100 items. None where nothing would show.
    """
    critical, reached = _normal_quantiles(power, confidence)

    def shown(difference: float, changed: float) -> bool:
        spread = critical * math.sqrt(changed) + reached * math.sqrt(changed - difference**2)
        return difference > 0 and difference * math.sqrt(samples) >= spread

    if not shown(1.0, 1.0):
        return None
    one_way = not shown(discordance, discordance)
    low, high = (discordance, 1.0) if one_way else (0.0, discordance)
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (low, middle) if shown(middle, middle if one_way else discordance) else (middle, high)
    return high


def detectable_difference(
    samples: int, deviation: float, *, paired: bool = True, power: float = 0.8, confidence: float = 0.95
) -> float | None:
    """Return the least true difference of means that shows in 80 % of all runs; None below 2 samples.

    Args:
        samples: pairs, or samples of each arm where they are not paired.
        deviation: standard deviation of the differences, or of the values within an arm.
        paired: whether both arms were given the same items.
        power: share of runs that show it.
        confidence: of the two-sided test.
    """
    if samples < 2:
        return None
    return sum(_normal_quantiles(power, confidence)) * deviation * math.sqrt((1 if paired else 2) / samples)


def clustered_standard_error(
    values: Sequence[float], groups: Sequence[Hashable] | None = None
) -> float | None:
    """Return the standard error of the mean when items of one group depend on one another.

    Source: Miller 2024, Adding Error Bars to Evals (arXiv 2411.00640), with Bessel's correction for the
    number of groups. None below 2 groups.
    """
    centre = _mean(values) if values else 0.0
    sums: dict[Hashable, float] = {}
    for place, value in enumerate(values):
        key = place if groups is None else groups[place]
        sums[key] = sums.get(key, 0.0) + value - centre
    if len(sums) < 2:
        return None
    variance = math.fsum(part * part for part in sums.values()) * len(sums) / (len(sums) - 1)
    return math.sqrt(variance) / len(values)


def samples_needed(
    difference: float, deviation: float, *, paired: bool = True, power: float = 0.8, confidence: float = 0.95
) -> int:
    """Return how many pairs, or samples for each arm, show a difference of means.

    Not paired, a 5 % difference takes 6, 16 or 63 for each arm where samples vary by 3, 5 or 10 %.
    """
    both = sum(_normal_quantiles(power, confidence))
    return math.ceil((1 if paired else 2) * (both * deviation / difference) ** 2)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _normal_quantiles(power: float, confidence: float) -> tuple[float, float]:
    return NormalDist().inv_cdf((1 + confidence) / 2), NormalDist().inv_cdf(power)
