"""Scores of written answers against their reference, with the study's definitions beside ours.

The study of 2024 gave the largest BLEU, ROUGE and F1 of any one answer. A largest value says nothing of a
model; it is here so that the study's table can be set beside ours, and never in a headline.
"""

from collections.abc import Sequence

from edgemed.metrics import (
    DEFINITIONS,
    Interval,
    ItemScores,
    bleu_of_counts,
    corpus_scores,
    is_degenerate,
    score_item,
)
from edgemed.records import Sample
from edgemed_benchmarks.claims import doses_without_support, named_sources
from edgemed_benchmarks.item_messages import with_passages
from edgemed_benchmarks.measured import Asked, Measured, mean_of
from edgemed_benchmarks.score_format import Unit
from edgemed_benchmarks.stats import Estimate

_YES_OR_NO = ("exact_match", "squad_exact_match", "degenerate")
_LARGEST = ("bleu", "rouge_l", "token_f1")


def score_answers(asked: Sequence[Asked]) -> list[Measured]:
    """Return every score of written answers that these questions allow."""
    answered = [each for each in asked if _text(each) is not None]
    with_reference = [each for each in answered if each.item and each.item.references]
    scores = _against_references(with_reference) if with_reference else _degenerate(answered)
    checks = _checks(answered)
    return [score for score in [*scores, *checks] if score.estimate.samples]


def text_of(sample: Sample | None) -> str | None:
    """Return what the model wrote, without the white space around it; None if the file does not have it."""
    return None if sample is None or sample.text is None else sample.text.strip()


def _text(each: Asked) -> str | None:
    return text_of(each.samples.get(""))


def _against_references(asked: Sequence[Asked]) -> list[Measured]:
    scored = {each.item_id: score_item(_text(each) or "", _reference(each)) for each in asked}
    items = list(scored.values())
    intervals = corpus_scores(items)
    scores = []
    for name, definition in DEFINITIONS.items():
        values = {item_id: _single(item, name) for item_id, item in scored.items()}
        better = name != "degenerate"
        if name in _YES_OR_NO:
            scores.append(mean_of(name, asked, list(values.values()), definition, higher_is_better=better))
            continue
        estimate = _estimate(intervals[name], len(items))
        unit: Unit = "points" if name == "bleu" else "share"
        scores.append(Measured(name, estimate, definition, values, unit=unit, higher_is_better=better))
    return [*scores, *(_largest(name, items) for name in _LARGEST)]


def _reference(each: Asked) -> str:
    assert each.item is not None
    return each.item.references[0]


def _estimate(interval: Interval, count: int) -> Estimate:
    if count < 3:
        return Estimate(interval.value, None, None, count, "the interval needs 3 answers")
    return Estimate(interval.value, interval.low, interval.high, count)


def _single(item: ItemScores, name: str) -> float:
    if name == "bleu":
        return bleu_of_counts([item.bleu], effective_order=True)
    return float(getattr(item, name))


def _largest(name: str, items: Sequence[ItemScores]) -> Measured:
    value = max(_single(item, name) for item in items)
    return Measured(
        f"study_{name}_largest",
        Estimate(value, None, None, len(items)),
        f"largest {name} of any one answer, as the study gives it; no measure of a model",
        unit="points" if name == "bleu" else "share",
        higher_is_better=None,
    )


def _degenerate(asked: Sequence[Asked]) -> list[Measured]:
    return [
        mean_of(
            "degenerate",
            asked,
            [float(is_degenerate(_text(each) or "")) for each in asked],
            DEFINITIONS["degenerate"],
            higher_is_better=False,
        )
    ]


def _checks(asked: Sequence[Asked]) -> list[Measured]:
    """Return what a person should look at: the rules find it, and cannot tell whether it is wrong."""
    cut = [float(each.samples[""].stop_reason == "length") for each in asked]
    return [
        mean_of(
            "unsupported_dose",
            asked,
            [_share(doses_without_support(_text(each) or "", _support(each))) for each in asked],
            "share of answers with an amount that question, passages and reference do not name: check it",
            higher_is_better=False,
        ),
        mean_of(
            "named_source",
            asked,
            [_share(named_sources(_text(each) or "", _support(each))) for each in asked],
            "share of answers that name an address, PMID, DOI or citation of their own: invented as a rule",
            higher_is_better=False,
        ),
        mean_of(
            "cut_at_limit",
            asked,
            cut,
            "share of answers that reached the token limit before their end",
            higher_is_better=False,
        ),
    ]


def _share(found: Sequence[object] | set[tuple[float, str]]) -> float:
    return float(bool(found))


def _support(each: Asked) -> list[str]:
    item = each.item
    return [] if item is None else [with_passages(item, item.question), *item.references, *item.history]
