"""Compare arms of any number of record files: machines, models and quantizations on the same questions.

Differences are taken item by item, with an interval, a test that is corrected for the number of pairs, and
the least difference that could have been seen. Arms that chance alone may have ordered are not ordered.
"""

import math
from collections.abc import Sequence
from itertools import combinations
from statistics import NormalDist
from typing import NamedTuple

import msgspec

from edgemed.errors import UsageError
from edgemed_benchmarks import compare_checks, paired_stats
from edgemed_benchmarks.compare_values import ArmValues, ComparedArm, ItemValue, Metric, MetricValues
from edgemed_benchmarks.comparison import Comparison, Kind, PairedResult, Ranking, Side, values_of
from edgemed_benchmarks.stats import Estimate, mean_estimate, median, rate

MOST_PAIRWISE = 6
"""Arms that differ in one thing and are each compared with each; above it, all with the first."""
_FEWEST_ITEMS = 6
"""No test of fewer pairs can reach 5 %."""


class _Common(NamedTuple):
    """The items that two arms share, in the same order."""

    before: list[float]
    after: list[float]
    groups: list[str]
    """Items without a group stand alone."""
    left_out: int
    other_words: int
    """Of those left out: asked with another prompt."""


def compare(arms: Sequence[ArmValues]) -> Comparison:
    """Compare all arms, in the order given: the first is what the others are measured against.

    Args:
        arms: of one file or many, as `compare_values.run_arms` reads them.

    Raises:
        UsageError: fewer than 2 arms.
        RecordError: a run was given twice, or one label stands for different model files.
    """
    if len(arms) < 2:
        raise UsageError(
            "There is only one arm to compare.", hint="Give two files, or a run of two models or more."
        )
    compare_checks.refuse_what_misleads(arms)
    said = compare_checks.flags(arms)
    wanted = _pairs(arms)
    if any(kind == "several" for _, _, kind in wanted):
        said.append("The machine and the model both differ: no difference can be put down to one of them.")
    results: list[PairedResult] = []
    for metric in _metrics(arms):
        found = [_pair(arms, metric, *pair) for pair in wanted]
        results += _corrected([result for result, _ in found if result is not None])
        said += _other_words(
            arms, metric, [(pair, words) for pair, (_, words) in zip(wanted, found, strict=True)]
        )
    return Comparison(
        arms=[_without_values(arm) for arm in arms],
        sides=_sides(arms),
        pairs=results,
        rankings=_rankings(arms, results),
        flags=list(dict.fromkeys(said)),
    )


def _without_values(arm: ArmValues) -> ComparedArm:
    return ComparedArm(**{name: getattr(arm, name) for name in ComparedArm.__struct_fields__})


def _metrics(arms: Sequence[ArmValues]) -> list[Metric]:
    return list(dict.fromkeys(metric for arm in arms for metric in arm.metrics))


def _pairs(arms: Sequence[ArmValues]) -> list[tuple[int, int, Kind]]:
    """Return which arms are compared: those that differ in one thing, or all when no two do."""
    every = [
        (before, after, _kind(arms[before], arms[after]))
        for before, after in combinations(range(len(arms)), 2)
    ]
    alike = [pair for pair in every if pair[2] != "several"]
    if len(arms) <= MOST_PAIRWISE:
        return alike or every
    firsts: dict[tuple[object, ...], int] = {}
    kept = []
    for before, after, kind in alike:
        model = _model(arms[before])
        place = None if kind == "machine" else arms[before].machine.machine_id
        family = (kind, model if kind in ("machine", "run") else None, place)
        if firsts.setdefault(family, before) == before:
            kept.append((before, after, kind))
    return kept or [pair for pair in every if pair[0] == 0]


def _kind(first: ArmValues, second: ArmValues) -> Kind:
    same_machine = first.machine.machine_id == second.machine.machine_id
    if _model(first) == _model(second):
        return "run" if same_machine else "machine"
    if not same_machine:
        return "several"
    of_one = first.arm.base_fingerprint, first.arm.dataset_sha256, first.arm.recipe_sha256
    other = second.arm.base_fingerprint, second.arm.dataset_sha256, second.arm.recipe_sha256
    named_alike = first.arm.model_name == second.arm.model_name
    same_source = of_one == other and any(of_one)
    quantized = first.arm.quantization_type != second.arm.quantization_type
    return "quantization" if quantized and (named_alike or same_source) else "model"


def _model(arm: ArmValues) -> tuple[object, ...]:
    return arm.arm.model_sha256, arm.arm.adapter_sha256


def _pair(
    arms: Sequence[ArmValues], metric: Metric, before: int, after: int, kind: Kind
) -> tuple[PairedResult | None, int]:
    """Return one result, and how many items were asked in other words."""
    first, second = values_of(arms[before], metric), values_of(arms[after], metric)
    if not first.items or not second.items or _other_questions(arms[before], arms[after], metric):
        return None, 0
    common = _common(first, second, same_prompts=kind != "model" and kind != "several")
    if not common.before:
        return None, common.other_words
    measure = paired_stats.paired_ratio if first.scale == "ratio" else paired_stats.paired_difference
    return (
        PairedResult(
            metric=metric,
            kind=kind,
            before=before,
            after=after,
            scale=first.scale,
            unit=first.unit,
            items=len(common.before),
            left_out=common.left_out,
            estimate=measure(common.before, common.after, groups=common.groups),
            p=_p(common, first),
            p_corrected=None,
            changed=_flips(common) if _right_or_wrong(common) else None,
            detectable=_detectable(common, first),
        ),
        common.other_words,
    )


def _other_questions(first: ArmValues, second: ArmValues, metric: Metric) -> bool:
    """Return whether both used different files under the name of the metric's item set."""
    # Of speeds it is a condition, and no file's name: there each item's prompt tells whether it is the same.
    mine, others = first.item_files.get(metric.item_set), second.item_files.get(metric.item_set)
    return mine is not None and others is not None and mine != others


def _common(first: MetricValues, second: MetricValues, *, same_prompts: bool) -> _Common:
    shared = [key for key in first.items if key in second.items]
    kept = [key for key in shared if not same_prompts or _same_prompts(first.items[key], second.items[key])]
    return _Common(
        [first.items[key].value for key in kept],
        [second.items[key].value for key in kept],
        [first.items[key].group or f"\0{key}" for key in kept],
        len(first.items.keys() | second.items.keys()) - len(kept),
        len(shared) - len(kept),
    )


def _same_prompts(first: ItemValue, second: ItemValue) -> bool:
    return not first.prompts or not second.prompts or first.prompts == second.prompts


def _right_or_wrong(common: _Common) -> bool:
    return {*common.before, *common.after} <= {0.0, 1.0}


def _flips(common: _Common) -> paired_stats.Flips:
    return paired_stats.flips(
        [bool(value) for value in common.before], [bool(value) for value in common.after]
    )


def _alone(common: _Common) -> bool:
    return len(set(common.groups)) == len(common.groups)


def _changes(common: _Common, values: MetricValues) -> list[float]:
    if values.scale == "ratio":
        return paired_stats.log_ratios(common.before, common.after)
    return paired_stats.differences(common.before, common.after)


def _p(common: _Common, values: MetricValues) -> float | None:
    if len(set(common.groups)) < _FEWEST_ITEMS:
        return None
    if _right_or_wrong(common) and _alone(common):
        return paired_stats.mcnemar(_flips(common))
    return paired_stats.sign_flip_test(_changes(common, values), groups=common.groups)


def _detectable(common: _Common, values: MetricValues) -> float | None:
    if _right_or_wrong(common) and _alone(common):
        return paired_stats.paired_detectable_difference(len(common.before), _flips(common).discordance)
    error = paired_stats.clustered_standard_error(_changes(common, values), common.groups)
    if error is None:
        return None
    least = (NormalDist().inv_cdf(0.975) + NormalDist().inv_cdf(0.8)) * error
    return math.expm1(least) if values.scale == "ratio" else least


def _corrected(results: list[PairedResult]) -> list[PairedResult]:
    tested = [place for place, result in enumerate(results) if result.p is not None]
    corrected = paired_stats.holm([p for result in results if (p := result.p) is not None])
    for place, p in zip(tested, corrected, strict=True):
        results[place] = msgspec.structs.replace(results[place], p_corrected=p)
    return results


def _other_words(
    arms: Sequence[ArmValues], metric: Metric, found: list[tuple[tuple[int, int, Kind], int]]
) -> list[str]:
    return [
        f"{arms[before].file} {arms[before].arm.label} and {arms[after].file} {arms[after].arm.label}: "
        f"{words} items of {metric.suite} were asked with another prompt and are left out."
        for (before, after, _), words in found
        if words
    ]


def _sides(arms: Sequence[ArmValues]) -> dict[Metric, list[Side]]:
    sides: dict[Metric, list[Side]] = {}
    for metric in _metrics(arms):
        for place, arm in enumerate(arms):
            values = values_of(arm, metric)
            if not values.items:
                continue
            estimate = _own_estimate(values)
            sides.setdefault(metric, []).append(Side(arm=place, unit=values.unit, estimate=estimate))
    return sides


def _own_estimate(values: MetricValues) -> Estimate:
    """Return an arm's value over all its own items, whatever the others have."""
    items = list(values.items.values())
    if values.unit == "tokens/s":
        return rate([item.value * item.seconds for item in items], [item.seconds for item in items])
    if values.scale == "ratio":
        return median([item.value for item in items])
    groups = [item.group or f"\0{key}" for key, item in values.items.items()]
    return mean_estimate([item.value for item in items], groups=groups)


def _rankings(arms: Sequence[ArmValues], results: Sequence[PairedResult]) -> list[Ranking]:
    """Return, for each metric that has a better side, its arms in tiers."""
    rankings = []
    for metric in _metrics(arms):
        found = [result for result in results if result.metric == metric]
        better = next(
            (values_of(arm, metric).higher_is_better for arm in arms if metric in arm.metrics), None
        )
        if better is None or not found:
            continue
        compared = {place for result in found for place in (result.before, result.after)}
        shown = {(result.before, result.after): result for result in found if result.shown}
        rankings.append(Ranking(metric=metric, tiers=_tiers(sorted(compared), shown, higher=better)))
    return rankings


def _tiers(
    compared: Sequence[int], shown: dict[tuple[int, int], PairedResult], *, higher: bool
) -> list[list[int]]:
    """Return the arms in layers: nobody in a tier is shown to be worse than anybody left when it is made."""
    worse_than: dict[int, set[int]] = {place: set() for place in compared}
    for (before, after), result in shown.items():
        neutral = 1.0 if result.scale == "ratio" else 0.0
        after_better = ((result.estimate.value or 0.0) > neutral) == higher
        worse, best = (before, after) if after_better else (after, before)
        worse_than[worse].add(best)
    left, tiers = list(compared), []
    while left:
        tier = [place for place in left if not worse_than[place] & set(left)] or left
        tiers.append(tier)
        left = [place for place in left if place not in tier]
    return tiers
