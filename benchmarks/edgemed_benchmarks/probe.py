"""A quarter of a minute before the run: how fast is this model here? The estimate stands on it."""

import itertools
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from edgemed.engine.messages import Answer, Event, Piece
from edgemed.errors import QuestionTooLong
from edgemed.manifest import ModelManifest
from edgemed.records import Item, Suite
from edgemed.session import DEFAULT_MAX_TOKENS
from edgemed_benchmarks.asks import Speed, characters_of, in_turn
from edgemed_benchmarks.item_messages import messages_of
from edgemed_benchmarks.outcome import answer_of, greedy
from edgemed_benchmarks.run_settings import ANSWERED_SUITES, Material, free_items
from edgemed_benchmarks.stats import median
from edgemed_benchmarks.suite_latency import StoppableEngine

PROBE_SECONDS = 15.0
SHORT_ANSWER_TOKENS = 16
USUAL_ANSWER_TOKENS = 160
"""Where the model is too slow to write an answer to its end within the probe."""
ENOUGH_ANSWERS = 3
"""Of a suite: fewer say little about how long its answers are."""
_LONG_ENOUGH_CHARACTERS = 250
"""About 64 tokens: less says little about the prefill."""
_ENOUGH_IN_ALL = 36
"""Answers: a probe that need not last goes no further."""


class ProbedEngine(StoppableEngine, Protocol):
    """What the probe needs: an engine that loads."""

    def wait_until_ready(self) -> None:
        """Block until the model is loaded."""


class _Asked(NamedTuple):
    item: Item
    answer: Answer
    seconds: float
    """From the question to the end of the answer, as this process saw it."""


def probe(
    engine: ProbedEngine,
    material: Material,
    items: Sequence[Item],
    *,
    lasting_seconds: float = PROBE_SECONDS,
) -> Speed:
    """Load the model, read and write a little; on a fast machine also whole answers, again and again.

    Args:
        items: what is asked when the material has nothing that is answered in words.
        lasting_seconds: for which a machine is watched that has given answers enough before: a shared or a
            busy one is now faster, now slower.

    Raises:
        EdgemedError: as the engine says.
    """
    manifest = material.manifest
    started = time.monotonic()
    engine.wait_until_ready()
    load_seconds = time.monotonic() - started
    began_at = time.monotonic()
    ends_at, lasts_until = began_at + PROBE_SECONDS, began_at + lasting_seconds
    by_suite = free_items(material.items) or {"latency": list(items)}
    items = [item for each in by_suite.values() for item in each]
    prompt = min(items, key=lambda item: abs(len(item.question) - _LONG_ENOUGH_CHARACTERS))
    # The first answer also saves the prefix, and touches what is not in memory yet.
    _short(engine, manifest, min(items, key=lambda item: len(item.question)), 1)
    asked = [_short(engine, manifest, prompt, SHORT_ANSWER_TOKENS)]
    whole = _whole_answers(engine, manifest, by_suite, ends_at, lasts_until)
    asked += [each for answers in whole.values() for each in answers]
    read_tokens = [max(1, each.answer.prompt_tokens - each.answer.reused_tokens) for each in asked]
    known = material.reference.answer_tokens if material.reference else {}
    lengths: dict[Suite, list[int]] = {
        suite: known.get(suite) or _lengths(whole.get(suite, [])) for suite in ANSWERED_SUITES
    }
    return Speed(
        load_seconds=load_seconds,
        prefill_rate=_rate(read_tokens, [each.answer.prefill_seconds for each in asked]),
        decode_rate=_rate(
            [each.answer.generated_tokens - 1 for each in asked],
            [each.answer.decode_seconds for each in asked],
        ),
        characters_per_token=sum(characters_of(messages_of(each.item, manifest)) for each in asked)
        / sum(read_tokens),
        overhead_seconds=median([_overhead(each) for each in asked]).value or 0.0,
        answer_tokens=lengths,
        answers_known=all(
            known.get(suite) or sum(map(_has_ended, whole[suite])) >= min(ENOUGH_ANSWERS, len(of_suite))
            for suite, of_suite in by_suite.items()
        ),
    )


def _lengths(asked: Sequence[_Asked]) -> list[int]:
    """Return the lengths of the answers, each question's once.

    Of a few answers a cut one counts too, as long as a usual one at least.
    """
    ended = {each.item.id: each.answer.generated_tokens for each in asked if _has_ended(each)}
    if len(ended) >= ENOUGH_ANSWERS:
        return list(ended.values())
    cut = {
        each.item.id: max(each.answer.generated_tokens, USUAL_ANSWER_TOKENS)
        for each in asked
        if not _has_ended(each)
    }
    return list((cut | ended).values()) or [USUAL_ANSWER_TOKENS]


def _has_ended(asked: _Asked) -> bool:
    return asked.answer.stop_reason != "cancelled"


def _overhead(asked: _Asked) -> float:
    return max(0.0, asked.seconds - asked.answer.prefill_seconds - asked.answer.decode_seconds)


def _rate(tokens: Sequence[int], seconds: Sequence[float]) -> float:
    return max(1, sum(tokens)) / max(sum(seconds), 1e-4)


def _short(engine: ProbedEngine, manifest: ModelManifest, item: Item, tokens: int) -> _Asked:
    started = time.monotonic()
    answer = answer_of(
        engine.measure(
            messages_of(item, manifest),
            max_tokens=tokens,
            reuse="saved_prefix",
            past_end=True,
            sampling=greedy(manifest),
        )
    )
    return _Asked(item, answer, time.monotonic() - started)


def _whole_answers(
    engine: ProbedEngine,
    manifest: ModelManifest,
    by_suite: Mapping[Suite, Sequence[Item]],
    ends_at: float,
    lasts_until: float,
) -> dict[Suite, list[_Asked]]:
    """Return the answers that there was time for, of each suite about as many; the last one may be cut."""
    chance = random.Random(0)
    answers: dict[Suite, list[_Asked]] = {suite: [] for suite in by_suite}
    pairs = in_turn(
        [[(suite, item) for item in chance.sample(items, len(items))] for suite, items in by_suite.items()]
    )
    for number, (suite, item) in enumerate(itertools.cycle(pairs)):
        now = time.monotonic()
        if now > ends_at or (number >= _ENOUGH_IN_ALL and now > lasts_until):
            break
        try:
            answers[suite].append(_whole_answer(engine, manifest, item, ends_at))
        except QuestionTooLong:
            continue
    return answers


def _whole_answer(engine: ProbedEngine, manifest: ModelManifest, item: Item, ends_at: float) -> _Asked:
    def stop_in_time(events: Iterator[Event]) -> Iterator[Event]:
        for event in events:
            if isinstance(event, Piece) and time.monotonic() > ends_at:
                engine.stop()
            yield event

    started = time.monotonic()
    events = engine.measure(
        messages_of(item, manifest),
        max_tokens=DEFAULT_MAX_TOKENS,
        reuse="saved_prefix",
        sampling=greedy(manifest),
    )
    answer = answer_of(stop_in_time(events))
    return _Asked(item, answer, time.monotonic() - started)
