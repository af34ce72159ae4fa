"""Whether a model knows what it knows: Brier score, reliability, calibration error with its null band.

All take the probabilities that the model gave to the answer options (softmax over the options' scores), not
words about how sure it is.
"""

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

from edgemed.metrics import mean
from edgemed_benchmarks.stats import Estimate, bootstrap, mean_estimate

BINS = 10


class Bin(NamedTuple):
    """Questions of which the model was about equally sure."""

    low: float
    high: float
    samples: int
    confidence: float
    """Mean probability of the chosen options."""
    accuracy: float
    """Share of the chosen options that are right."""


class CalibrationError(NamedTuple):
    """Expected calibration error, and what a perfectly calibrated model would get from as many questions."""

    value: float
    samples: int
    null_mean: float
    null_high: float
    """95 % of perfectly calibrated models stay below it: a smaller `value` shows nothing."""


def option_probabilities(scores: Sequence[float]) -> list[float]:
    """Return the softmax of the options' log-probabilities (nats), which adds up to 1."""
    greatest = max(scores)
    weights = [math.exp(score - greatest) for score in scores]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def brier(probabilities: Sequence[Sequence[float]], correct: Sequence[int], *, seed: int = 0) -> Estimate:
    """Return the mean squared error of the option probabilities, from 0 (best) to 2 (Brier 1950).

    Four options at 25 % each give 0.75 whatever is right.

    Args:
        probabilities: of the options, for each question.
        correct: index of the right option of each question.
        seed: of the bootstrap interval.
    """
    errors = [
        math.fsum((chance - (place == right)) ** 2 for place, chance in enumerate(options))
        for options, right in zip(probabilities, correct, strict=True)
    ]
    return mean_estimate(errors, seed=seed)


def reliability_bins(confidences: Sequence[float], right: Sequence[bool], *, bins: int = BINS) -> list[Bin]:
    """Return the bins of equal width that hold any question, from unsure to sure.

    Args:
        confidences: probability of the chosen option, 0 to 1.
        right: whether it was the right one.
        bins: how many over 0 to 1.
    """
    members: dict[int, list[tuple[float, bool]]] = {}
    for confidence, hit in zip(confidences, right, strict=True):
        members.setdefault(min(int(confidence * bins), bins - 1), []).append((confidence, hit))
    return [
        Bin(
            place / bins,
            (place + 1) / bins,
            len(held),
            mean([confidence for confidence, _ in held]),
            mean([float(hit) for _, hit in held]),
        )
        for place, held in sorted(members.items())
    ]


def calibration_error(
    confidences: Sequence[float],
    right: Sequence[bool],
    *,
    bins: int = BINS,
    seed: int = 0,
    draws: int = 1000,
) -> CalibrationError | None:
    """Return the expected calibration error with its null band; None of no questions.

    The error is never 0 even for a perfect model, and the fewer the questions the greater it is: with 100
    questions about 0.09. So it is shown beside what chance gives when each answer is right with just the
    stated probability, drawn anew `draws` times. Sources: Naeini and others 2015; Broecker and Smith 2007,
    "consistency resampling".
    """
    if not confidences:
        return None
    value = _calibration_error(confidences, right, bins)
    chance = random.Random(seed)
    null = sorted(
        _calibration_error(confidences, [chance.random() < confidence for confidence in confidences], bins)
        for _ in range(draws)
    )
    return CalibrationError(value, len(confidences), mean(null), null[math.ceil(0.95 * draws) - 1])


def selective_accuracy(
    confidences: Sequence[float], right: Sequence[bool], *, coverage: float = 0.8, seed: int = 0
) -> Estimate:
    """Return the accuracy when the model may pass over the questions of which it is least sure.

    Questions that are equally sure at the border count in part, so that the order of the items is of no
    matter. The interval is over items drawn anew.

    Args:
        confidences: probability of the chosen option.
        right: whether it was the right one.
        coverage: share of the questions that it must answer.
        seed: of the bootstrap interval.
    """
    pairs = list(zip(confidences, right, strict=True))
    return bootstrap(pairs, lambda drawn: _selective_accuracy(drawn, coverage), seed=seed, resamples=1000)


def _selective_accuracy(pairs: Sequence[tuple[float, bool]], coverage: float) -> float:
    ordered = sorted(pairs, key=lambda pair: -pair[0])
    kept = max(1, round(coverage * len(ordered)))
    border = ordered[kept - 1][0]
    surely = [hit for confidence, hit in ordered if confidence > border]
    at_border = [hit for confidence, hit in ordered if confidence == border]
    return (sum(surely) + (kept - len(surely)) * mean([float(hit) for hit in at_border])) / kept


def _calibration_error(confidences: Sequence[float], right: Sequence[bool], bins: int) -> float:
    samples, sure, hits = [0] * bins, [0.0] * bins, [0] * bins
    for confidence, hit in zip(confidences, right, strict=True):
        place = min(int(confidence * bins), bins - 1)
        samples[place] += 1
        sure[place] += confidence
        hits[place] += hit
    return math.fsum(abs(total - hit) for total, hit in zip(sure, hits, strict=True)) / sum(samples)
