"""The scores of one model's answers, as `edgemed.metrics` defines them, and the share that ended by itself.

Used at the end of each epoch and by `evaluate`.
"""

from collections.abc import Sequence

import msgspec

from edgemed import metrics

DEFINITIONS = metrics.DEFINITIONS | {
    "ended": "share of answers that the model ended by itself, with an end token"
}

TOKEN_ACCURACY = (
    "share of the held-out answers' tokens that the model would have put first, each with the true answer "
    "before it in sight: no answer is written, so it says little about answers"
)


class Score(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One metric over all answers, with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def mean_scores(answers: Sequence[str], references: Sequence[str], ended: Sequence[bool]) -> dict[str, float]:
    """Return each metric over all answers, BLEU over the corpus.

    Args:
        answers: one or more.
        references: as many.
        ended: whether each answer ended with an end token.
    """
    items = list(map(metrics.score_item, answers, references))
    scores = {
        name: metrics.mean([getattr(item, name) for item in items])
        for name in metrics.DEFINITIONS
        if name != "bleu"
    }
    bleu = metrics.bleu_of_counts([item.bleu for item in items])
    return scores | {"bleu": bleu, "ended": metrics.mean([float(end) for end in ended])}


def score_intervals(
    answers: Sequence[str],
    references: Sequence[str],
    ended: Sequence[bool] | None,
    *,
    samples: int,
    seed: int = 0,
) -> dict[str, Score]:
    """Return each metric with its interval over resampled answers.

    Args:
        answers: one or more.
        references: as many.
        ended: whether each answer ended with an end token; None where no model wrote them.
        samples: how often to resample.
        seed: of the resampling.
    """
    items = list(map(metrics.score_item, answers, references))
    found = metrics.corpus_scores(items, samples=samples, seed=seed)
    if ended is not None:
        shares = [float(end) for end in ended]
        found["ended"] = metrics.bootstrap_interval(shares, metrics.mean, samples=samples, seed=seed)
    return {name: Score(value=score.value, low=score.low, high=score.high) for name, score in found.items()}
