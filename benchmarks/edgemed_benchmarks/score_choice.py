"""Scores of multiple choice: by letters in several orders, by the options' words, and as it is written.

An unparsed answer is wrong and counted. Probabilities are the softmax over the options, the mean of
all orders that were asked.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from edgemed.metrics import mean
from edgemed.records import Choice
from edgemed_benchmarks.calibration import (
    Bin,
    brier,
    calibration_error,
    option_probabilities,
    reliability_bins,
    selective_accuracy,
)
from edgemed_benchmarks.measured import Asked, Measured, mean_of
from edgemed_benchmarks.stats import Estimate
from edgemed_benchmarks.written_choice import written_choice

_SURE = 0.8


class _Judged(NamedTuple):
    """One question: the mean probability of each option in its original order, and the right one."""

    probabilities: list[float]
    correct: int

    @property
    def confidence(self) -> float:
        return max(self.probabilities)

    @property
    def right(self) -> bool:
        return self.probabilities.index(self.confidence) == self.correct


def score_choices(asked: Sequence[Asked]) -> list[Measured]:
    """Return every score of multiple choice that these questions allow."""
    scores = [
        mean_of(
            "accuracy",
            asked,
            [_mean_right(orders) for orders in map(_orders, asked)],
            "mean over questions of the share of orders in which the right letter was the most probable",
        ),
        mean_of(
            "accuracy_first_order",
            asked,
            [_right(each, "letters:0", _by_sum) for each in asked],
            "share of questions whose right letter was the most probable, in the first order alone",
        ),
        mean_of(
            "accuracy_text",
            asked,
            [_right(each, "text", _by_sum) for each in asked],
            "share of questions whose right option's words were the most probable; options not shown",
        ),
        mean_of(
            "accuracy_text_per_character",
            asked,
            [_right(each, "text", _by_character) for each in asked],
            "the same, log-probability divided by characters, as in lm-evaluation-harness's acc_norm",
        ),
        mean_of(
            "consistency",
            asked,
            [_consistent(orders) for orders in map(_orders, asked)],
            "share of questions for which every order of the options led to the same choice",
        ),
        *_written(asked),
        *_sureness(asked),
    ]
    bias = _letter_bias(asked)
    return [score for score in [*scores, *([bias] if bias else [])] if score.estimate.samples]


def bins_of(asked: Sequence[Asked]) -> list[Bin]:
    """Return the reliability bins of these questions."""
    judged = [each for each in map(_judged, asked) if each]
    return reliability_bins([each.confidence for each in judged], [each.right for each in judged])


def _orders(each: Asked) -> list[Choice]:
    return [
        sample.choice
        for condition, sample in sorted(each.samples.items())
        if condition.startswith("letters:") and sample.choice and sample.choice.options
    ]


def _by_sum(choice: Choice) -> int:
    scores = [option.log_probability for option in choice.options]
    return scores.index(max(scores))


def _by_character(choice: Choice) -> int:
    scores = [option.log_probability / max(1, option.characters) for option in choice.options]
    return scores.index(max(scores))


def _right(each: Asked, condition: str, chosen: Callable[[Choice], int]) -> float | None:
    choice = each.samples[condition].choice if condition in each.samples else None
    if choice is None or choice.correct is None or not choice.options:
        return None
    return float(chosen(choice) == choice.correct)


def _mean_right(orders: Sequence[Choice]) -> float | None:
    known = [choice for choice in orders if choice.correct is not None]
    return mean([float(_by_sum(choice) == choice.correct) for choice in known]) if known else None


def _consistent(orders: Sequence[Choice]) -> float | None:
    if len(orders) < 2:
        return None
    return float(len({choice.permutation[_by_sum(choice)] for choice in orders if choice.permutation}) == 1)


def _written(asked: Sequence[Asked]) -> list[Measured]:
    right: list[float | None] = []
    unparsed: list[float | None] = []
    for each in asked:
        sample = each.samples.get("written:0")
        if each.item is None or each.item.correct is None or sample is None or sample.text is None:
            right.append(None)
            unparsed.append(None)
            continue
        place = written_choice(sample.text, each.item.options)
        right.append(float(place == each.item.correct))
        unparsed.append(float(place is None))
    return [
        mean_of(
            "accuracy_written",
            asked,
            right,
            "share of questions in which the model wrote the right choice; what cannot be told is wrong",
        ),
        mean_of(
            "unparsed",
            asked,
            unparsed,
            "share of written answers that name no option, or more than one",
            higher_is_better=False,
        ),
    ]


def _letter_bias(asked: Sequence[Asked]) -> Measured | None:
    """Return how often the favourite place was chosen; only full turns count."""
    chosen: dict[int, int] = {}
    questions = 0
    for orders in map(_orders, asked):
        if orders and len(orders) == len(orders[0].options):
            questions += 1
            for choice in orders:
                chosen[_by_sum(choice)] = chosen.get(_by_sum(choice), 0) + 1
    if not questions:
        return None
    return Measured(
        "favourite_place",
        Estimate(max(chosen.values()) / sum(chosen.values()), None, None, questions),
        "share of all choices that fell on the place chosen most; without bias it is 1 ÷ options",
        higher_is_better=False,
        note="A property of the model, shown without interval.",
    )


def _judged(each: Asked) -> _Judged | None:
    """Return the question's mean probabilities over its orders, options in their original order."""
    orders = [choice for choice in _orders(each) if choice.correct is not None and choice.permutation]
    if not orders:
        return None
    total = [0.0] * len(orders[0].options)
    for choice in orders:
        shares = option_probabilities([option.log_probability for option in choice.options])
        for place, share in enumerate(shares):
            total[choice.permutation[place]] += share / len(orders)
    first = orders[0]
    assert first.correct is not None
    return _Judged(total, first.permutation[first.correct])


def _sureness(asked: Sequence[Asked]) -> list[Measured]:
    judged = {each.item_id: found for each in asked if (found := _judged(each))}
    if not judged:
        return []
    sure = [each.confidence for each in judged.values()]
    right = [each.right for each in judged.values()]
    errors = {
        item_id: sum((share - (place == each.correct)) ** 2 for place, share in enumerate(each.probabilities))
        for item_id, each in judged.items()
    }
    calibration = calibration_error(sure, right)
    scores = [
        Measured(
            "brier",
            brier(
                [each.probabilities for each in judged.values()], [each.correct for each in judged.values()]
            ),
            "mean squared error of the options' probabilities: 0 is perfect, 0.75 is knowing nothing of four",
            errors,
            higher_is_better=False,
        ),
        Measured(
            "accuracy_of_surest_80",
            selective_accuracy(sure, right, coverage=_SURE),
            "accuracy on the 80 % of questions about which the model is surest",
        ),
    ]
    if calibration:
        scores.append(
            Measured(
                "calibration_error",
                Estimate(calibration.value, None, None, calibration.samples),
                "mean gap between how sure and how often right, in 10 bins (ECE)",
                higher_is_better=False,
                note=f"With so few questions a perfectly calibrated model gets {calibration.null_mean:.3f}, "
                f"and up to {calibration.null_high:.3f} by chance.",
            )
        )
    return scores
