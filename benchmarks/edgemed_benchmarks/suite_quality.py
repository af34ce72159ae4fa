"""The quality suite: written answers, and multiple choice by log-likelihood and by generation.

One item gives one sample for each of its conditions, so that a run can stop and go on between any two:

""            the model writes its answer; scored against the reference
"letters:K"   the options are shown, turned round by K places; the probability of each letter
"text"        the options are not shown; the probability of each option's words after the question
"written:K"   the options are shown, turned round by K places; the model writes its choice

Models begin their answer with a space or without, as their tokenizer and template have it: the probability of
a letter, or of an option's words, is that of both together.
"""

import math
from collections.abc import Sequence

from edgemed.engine.messages import ChatMessage, ContinuationScore, Scores
from edgemed.errors import UsageError
from edgemed.manifest import ModelManifest
from edgemed.records import Choice, Item, OptionScore
from edgemed_benchmarks.item_messages import (
    LETTERS,
    choice_messages,
    messages_of,
    short_answer_messages,
)
from edgemed_benchmarks.outcome import (
    BenchEngine,
    Outcome,
    answer_of,
    greedy,
    outcome_of_answer,
    outcome_of_scores,
)

ANSWER_TOKENS = 192
"""Most tokens of a written answer. A reference answer of our own has at most about 80."""
CHOICE_TOKENS = 24
"""Enough for "The answer is B." and a few words more."""


def conditions(item: Item, *, turns: int = 4, by_text: bool = True, written: bool = True) -> list[str]:
    """Return the conditions under which this item is asked, one sample each.

    Args:
        turns: how many orders of the options are tried; never more than there are options.
        by_text: score the options' words too.
        written: let the model write its choice too, in the first order.
    """
    if not item.options:
        return [""]
    orders = [f"letters:{turn}" for turn in range(min(turns, len(item.options)))]
    return [*orders, *(["text"] if by_text else []), *(["written:0"] if written else [])]


def sample(
    engine: BenchEngine,
    item: Item,
    manifest: ModelManifest,
    condition: str = "",
    *,
    max_tokens: int = ANSWER_TOKENS,
    seed: int = 0,
) -> Outcome:
    """Ask one item under one of its `conditions`.

    Raises:
        UsageError: there is no such condition, or the question is too long for the model.
        EdgemedError: as the engine says.
    """
    kind, _separator, turn = condition.partition(":")
    permutation = turned(len(item.options), int(turn)) if turn.isdecimal() else []
    if kind == "letters" and permutation:
        return _by_letters(engine, item, manifest, permutation, condition)
    if condition == "text" and item.options:
        return _by_text(engine, item, manifest)
    if kind == "written" and permutation:
        messages, max_tokens = choice_messages(item, manifest, permutation), CHOICE_TOKENS
    elif not condition:
        messages = messages_of(item, manifest)
    else:
        raise UsageError(f"The item {item.id} cannot be asked under the condition {condition!r}.")
    events = engine.measure(
        messages, max_tokens=max_tokens, seed=seed, reuse="saved_prefix", sampling=greedy(manifest)
    )
    return outcome_of_answer(item.id, answer_of(events), condition=condition)


def turned(options: int, turn: int) -> list[int]:
    """Return a cyclic order of so many options: after all turns each has stood at each place once."""
    return [(place + turn) % options for place in range(options)]


def _by_letters(
    engine: BenchEngine, item: Item, manifest: ModelManifest, permutation: list[int], condition: str
) -> Outcome:
    letters = LETTERS[: len(permutation)]
    correct = None if item.correct is None else permutation.index(item.correct)
    scores, options = _score(engine, letters, choice_messages(item, manifest, permutation))
    choice = Choice(options=options, correct=correct, permutation=permutation)
    return outcome_of_scores(item.id, scores, choice, condition=condition)


def _by_text(engine: BenchEngine, item: Item, manifest: ModelManifest) -> Outcome:
    scores, options = _score(engine, item.options, short_answer_messages(item, manifest))
    order = list(range(len(options)))
    choice = Choice(options=options, correct=item.correct, permutation=order, by_text=True)
    return outcome_of_scores(item.id, scores, choice, condition="text")


def _score(
    engine: BenchEngine, answers: Sequence[str], messages: Sequence[ChatMessage]
) -> tuple[Scores, list[OptionScore]]:
    """Return how probable each answer is, with and without a space before it: models begin either way."""
    continuations = [spaced for answer in answers for spaced in (answer, f" {answer}")]
    scores = engine.score(continuations, messages=messages)
    pairs = zip(scores.continuations[::2], scores.continuations[1::2], strict=True)
    return scores, [_both(answer, *pair) for answer, pair in zip(answers, pairs, strict=True)]


def _both(answer: str, plain: ContinuationScore, spaced: ContinuationScore) -> OptionScore:
    likelier, other = sorted((plain, spaced), key=lambda score: -score.log_probability)
    total = likelier.log_probability + math.log1p(math.exp(other.log_probability - likelier.log_probability))
    return OptionScore(
        log_probability=total,
        tokens=likelier.tokens,
        characters=len(answer),
        greedy=plain.greedy or spaced.greedy,
    )
