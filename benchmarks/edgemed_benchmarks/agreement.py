"""How far people who rated the same answers agree: Krippendorff's alpha and weighted kappa. Pure Python."""

from collections.abc import Mapping, Sequence
from statistics import mean

from edgemed_benchmarks.stats import Estimate, bootstrap


def krippendorff_alpha(units: Sequence[Sequence[int]], *, groups: Sequence[str], seed: int = 0) -> Estimate:
    """Return Krippendorff's alpha for ordinal values, with a 95 % bootstrap interval over groups of units.

    1 is full agreement, 0 is chance. Source: Krippendorff, Computing Krippendorff's Alpha-Reliability, 2011.

    Args:
        units: the values that each answer got, from any number of people; those with one value are left out.
        groups: one a unit; units of one group are drawn together.
        seed: of the bootstrap.
    """
    pairs = [(unit, group) for unit, group in zip(units, groups, strict=True) if len(unit) > 1]
    if not pairs:
        return Estimate(None, None, None, 0, "no answer was rated by two people")
    kept = [unit for unit, _group in pairs]
    if len({value for unit in kept for value in unit}) == 1:
        return Estimate(None, None, None, len(kept), "all values are the same: agreement cannot be told")
    return bootstrap(kept, _alpha, groups=[group for _unit, group in pairs], seed=seed)


def weighted_kappa(
    first: Sequence[int], second: Sequence[int], *, groups: Sequence[str], seed: int = 0
) -> Estimate:
    """Return Cohen's kappa of two people with quadratic weights, with a 95 % bootstrap interval.

    Source: Cohen, Weighted kappa, Psychological Bulletin 70 (1968) 213.

    Args:
        first: one value an answer.
        second: of the same answers.
        groups: one an answer; answers of one group are drawn together.
        seed: of the bootstrap.
    """
    pairs = list(zip(first, second, strict=True))
    if not pairs:
        return Estimate(None, None, None, 0, "no answer was rated by both")
    if len({value for pair in pairs for value in pair}) == 1:
        return Estimate(None, None, None, len(pairs), "all values are the same: agreement cannot be told")
    return bootstrap(pairs, _kappa, groups=groups, seed=seed)


def _alpha(units: Sequence[Sequence[int]]) -> float:
    coincidences: dict[tuple[int, int], float] = {}
    for unit in units:
        weight = 1 / (len(unit) - 1)
        for place, value in enumerate(unit):
            for other_place, other in enumerate(unit):
                if place != other_place:
                    coincidences[value, other] = coincidences.get((value, other), 0.0) + weight
    totals: dict[int, float] = {}
    for (value, _other), count in coincidences.items():
        totals[value] = totals.get(value, 0.0) + count
    everything = sum(totals.values())
    distances = _ordinal_distances(totals)
    observed = sum(count * distances[pair] for pair, count in coincidences.items())
    expected = sum(
        totals[value] * totals[other] * distance for (value, other), distance in distances.items()
    ) / (everything - 1)
    # A resample in which all values are the same: nobody disagreed.
    return 1.0 if expected == 0 else 1 - observed / expected


def _ordinal_distances(totals: Mapping[int, float]) -> dict[tuple[int, int], float]:
    """Return the squared distance of each two values: how many values lie between, half of both ends."""
    values = sorted(totals)
    distances = {}
    for place, low in enumerate(values):
        between = 0.0
        for high in values[place:]:
            between += totals[high]
            distance = 0.0 if low == high else (between - (totals[low] + totals[high]) / 2) ** 2
            distances[low, high] = distances[high, low] = distance
    return distances


def _kappa(pairs: Sequence[tuple[int, int]]) -> float:
    observed = mean((first - second) ** 2 for first, second in pairs)
    firsts, seconds = [first for first, _ in pairs], [second for _, second in pairs]
    # The mean squared difference of values drawn apart: from means and mean squares alone.
    expected = (
        mean(value * value for value in firsts)
        + mean(value * value for value in seconds)
        - 2 * mean(firsts) * mean(seconds)
    )
    return 1.0 if expected <= 0 else 1 - observed / expected
