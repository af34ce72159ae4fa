"""Score a record file: from the answers of a run to `score_format.Scores`. Pure Python, base install.

Whether a sample's times are to be trusted is of no matter here: a slow answer is as right as a fast one.
"""

from collections.abc import Iterable, Sequence

from edgemed import __version__
from edgemed.records import Item, ItemFile, Sample, Suite
from edgemed_benchmarks.errors import ItemError, RecordError
from edgemed_benchmarks.item_files import ItemSet, find_recorded_set
from edgemed_benchmarks.journal import Run
from edgemed_benchmarks.measured import Asked, Measured
from edgemed_benchmarks.score_answers import score_answers
from edgemed_benchmarks.score_choice import bins_of, score_choices
from edgemed_benchmarks.score_format import ItemScore, ReliabilityBin, Score, Scores, SetUsed
from edgemed_benchmarks.score_safety import score_safety

_SUITES: tuple[Suite, ...] = ("quality", "safety")


def score_run(run: Run, *, given: Sequence[str] = ()) -> Scores:
    """Return all scores of a run's quality and safety samples.

    The questions are found here by the names and SHA-256 that the run names. Where a set is missing, letters
    and options are scored all the same, and written answers are not.

    Args:
        given: item files, or names of sets, to look at besides those of that name.

    Raises:
        RecordError: two item sets of the run hold the same item id.
    """
    used, sets = _find_sets(run.start.item_files, given)
    items = _items_by_id(run, sets)
    samples = [sample for sample in run.samples if sample.suite in _SUITES and not sample.warm_up]
    kept = [sample for sample in samples if sample.stop_reason != "engine_died"]
    scores: list[Score] = []
    item_scores: list[ItemScore] = []
    bins: list[ReliabilityBin] = []
    for arm in range(len(run.arms)):
        for (suite, item_set), asked in _asked(kept, arm, items).items():
            for measured in _score_set(suite, asked):
                scores.append(_score(measured, suite, arm, item_set))
                item_scores += _item_scores(measured, suite, arm, item_set, asked)
            if suite == "quality":
                bins += _bins(asked, arm)
    return Scores(
        edgemed_version=__version__,
        run_id=run.start.run_id,
        machine_id=run.machines[0].machine_id if run.machines else "",
        arms=[arm.label for arm in run.arms],
        model_sha256=[arm.model_sha256 for arm in run.arms],
        item_sets=used,
        scores=scores,
        items=item_scores,
        bins=bins,
        samples=len(samples),
        without_text=sum(sample.choice is None and sample.text is None for sample in kept),
        cut=len(samples) - len(kept),
        late=sum(sample.stop_reason == "cancelled" for sample in kept),
    )


def _find_sets(files: Iterable[ItemFile], given: Sequence[str]) -> tuple[list[SetUsed], list[ItemSet]]:
    used, sets = [], []
    for file in files:
        try:
            sets.append(find_recorded_set(file, given))
            used.append(SetUsed(item_file=file, found=True))
        except ItemError as error:
            used.append(SetUsed(item_file=file, found=False, reason=error.message))
    return used, sets


def _items_by_id(run: Run, sets: Iterable[ItemSet]) -> dict[tuple[Suite, str], tuple[str, Item]]:
    """Return set name and item by suite and id; the latency suite's items are no quality."""
    found: dict[tuple[Suite, str], tuple[str, Item]] = {}
    for each in sets:
        for item in each.items:
            key = (each.suite, item.id)
            if key in found:
                raise RecordError(
                    f"{run.path}: the sets {found[key][0]} and {each.name} both hold the item {item.id}.",
                    hint="Score runs of both sets apart.",
                )
            found[key] = (each.name, item)
    return found


def _asked(
    samples: Iterable[Sample], arm: int, items: dict[tuple[Suite, str], tuple[str, Item]]
) -> dict[tuple[Suite, str], list[Asked]]:
    """Return the items of one arm by suite and set; of repetitions the first counts."""
    by_item: dict[tuple[Suite, str], Asked] = {}
    for sample in samples:
        if sample.arm == arm:
            key = (sample.suite, sample.item_id)
            item = items[key][1] if key in items else None
            asked = by_item.setdefault(key, Asked(sample.item_id, item, {}))
            asked.samples.setdefault(sample.condition, sample)
    sets: dict[tuple[Suite, str], list[Asked]] = {}
    for key, asked in by_item.items():
        name = items[key][0] if key in items else ""
        sets.setdefault((key[0], name), []).append(asked)
    return sets


def _score_set(suite: Suite, asked: Sequence[Asked]) -> list[Measured]:
    if suite == "safety":
        return score_safety(asked)
    return [
        *score_choices([each for each in asked if _is_choice(each)]),
        *score_answers([each for each in asked if "" in each.samples]),
    ]


def _is_choice(each: Asked) -> bool:
    return any(condition for condition in each.samples)


def _score(measured: Measured, suite: Suite, arm: int, item_set: str) -> Score:
    estimate = measured.estimate
    return Score(
        suite=suite,
        arm=arm,
        metric=measured.metric,
        item_set=item_set,
        value=estimate.value,
        low=estimate.low,
        high=estimate.high,
        n=estimate.samples,
        unit=measured.unit,
        higher_is_better=measured.higher_is_better,
        definition=measured.definition,
        note=measured.note or estimate.reason,
    )


def _item_scores(
    measured: Measured, suite: Suite, arm: int, item_set: str, asked: Sequence[Asked]
) -> list[ItemScore]:
    groups = {each.item_id: each.group for each in asked}
    return [
        ItemScore(
            suite=suite,
            arm=arm,
            metric=measured.metric,
            item_set=item_set,
            item_id=item_id,
            group=groups[item_id],
            value=value,
        )
        for item_id, value in measured.values.items()
    ]


def _bins(asked: Sequence[Asked], arm: int) -> list[ReliabilityBin]:
    return [
        ReliabilityBin(
            arm=arm,
            low=each.low,
            high=each.high,
            n=each.samples,
            mean_confidence=each.confidence,
            share_right=each.accuracy,
        )
        for each in bins_of([each for each in asked if _is_choice(each)])
    ]
