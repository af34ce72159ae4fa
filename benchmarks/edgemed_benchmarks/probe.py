"""A quarter of a minute before the run: how fast is this model here? The estimate stands on it."""

import time
from collections.abc import Iterator, Sequence
from typing import Protocol

from edgemed.engine.messages import Answer, Event, Piece
from edgemed.errors import QuestionTooLong
from edgemed.manifest import ModelManifest
from edgemed.records import Item
from edgemed.session import DEFAULT_MAX_TOKENS
from edgemed_benchmarks.asks import Speed, characters_of
from edgemed_benchmarks.item_messages import messages_of
from edgemed_benchmarks.outcome import answer_of, greedy
from edgemed_benchmarks.suite_latency import StoppableEngine

PROBE_SECONDS = 15.0
SHORT_ANSWER_TOKENS = 16
USUAL_ANSWER_TOKENS = 160.0
"""Where the model is too slow to write an answer to its end within the probe."""
_LONG_ENOUGH_CHARACTERS = 250
"""About 64 tokens: less says little about the prefill."""
_MOST_ANSWERS = 12


class ProbedEngine(StoppableEngine, Protocol):
    """What the probe needs: an engine that loads."""

    def wait_until_ready(self) -> None:
        """Block until the model is loaded."""


def probe(engine: ProbedEngine, manifest: ModelManifest, items: Sequence[Item]) -> Speed:
    """Load the model, read and write a little; on a fast machine also some whole answers.

    Raises:
        EdgemedError: as the engine says.
    """
    started = time.monotonic()
    engine.wait_until_ready()
    load_seconds = time.monotonic() - started
    ends_at = time.monotonic() + PROBE_SECONDS
    prompt = min(items, key=lambda item: abs(len(item.question) - _LONG_ENOUGH_CHARACTERS))
    # The first answer also saves the prefix, and touches what is not in memory yet.
    _short(engine, manifest, min(items, key=lambda item: len(item.question)), 1)
    asked = [(prompt, _short(engine, manifest, prompt, SHORT_ANSWER_TOKENS))]
    whole = _whole_answers(engine, manifest, items, ends_at)
    ended = [answer.generated_tokens for _item, answer in whole if answer.stop_reason != "cancelled"]
    cut = [answer.generated_tokens for _item, answer in whole if answer.stop_reason == "cancelled"]
    asked += whole
    read_tokens = [max(1, answer.prompt_tokens - answer.reused_tokens) for _item, answer in asked]
    return Speed(
        load_seconds=load_seconds,
        prefill_rate=_rate(read_tokens, [answer.prefill_seconds for _item, answer in asked]),
        decode_rate=_rate(
            [answer.generated_tokens - 1 for _item, answer in asked],
            [answer.decode_seconds for _item, answer in asked],
        ),
        characters_per_token=sum(characters_of(messages_of(item, manifest)) for item, _answer in asked)
        / sum(read_tokens),
        answer_tokens=max(sum(ended) / len(ended) if ended else USUAL_ANSWER_TOKENS, *cut, 1),
    )


def _rate(tokens: Sequence[int], seconds: Sequence[float]) -> float:
    return max(1, sum(tokens)) / max(sum(seconds), 1e-4)


def _short(engine: ProbedEngine, manifest: ModelManifest, item: Item, tokens: int) -> Answer:
    return answer_of(
        engine.measure(
            messages_of(item, manifest),
            max_tokens=tokens,
            reuse="saved_prefix",
            past_end=True,
            sampling=greedy(manifest),
        )
    )


def _whole_answers(
    engine: ProbedEngine, manifest: ModelManifest, items: Sequence[Item], ends_at: float
) -> list[tuple[Item, Answer]]:
    """Return the answers that there was time for; the last one may be cut."""
    answers: list[tuple[Item, Answer]] = []
    for item in items[:: max(1, len(items) // _MOST_ANSWERS)][:_MOST_ANSWERS]:
        if time.monotonic() > ends_at:
            break
        try:
            answers.append((item, _whole_answer(engine, manifest, item, ends_at)))
        except QuestionTooLong:
            continue
    return answers


def _whole_answer(engine: ProbedEngine, manifest: ModelManifest, item: Item, ends_at: float) -> Answer:
    def stop_in_time(events: Iterator[Event]) -> Iterator[Event]:
        for event in events:
            if isinstance(event, Piece) and time.monotonic() > ends_at:
                engine.stop()
            yield event

    events = engine.measure(
        messages_of(item, manifest),
        max_tokens=DEFAULT_MAX_TOKENS,
        reuse="saved_prefix",
        sampling=greedy(manifest),
    )
    return answer_of(stop_in_time(events))
