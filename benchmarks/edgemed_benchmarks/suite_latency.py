"""The latency suite: how long a health worker waits for the first words and for the whole answer.

Real questions in the app's own template, in three lengths (`length:` tags of the items). A sample's condition
is one or more of these words:

cold           the first question after the model was loaded, its first words only
saved_prefix   what the app does: the system message's state comes from the disk, the rest is read
no_prefix      nothing is reused; short, for reading alone is measured
busy:1         as saved_prefix, with one core kept busy by another program
forced:N       written on past the answer's end to N tokens: for rates that can be compared
length:…       the item's class
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Protocol

from edgemed.engine.messages import Answer, Event, Finished, Piece, Reuse
from edgemed.errors import EngineError
from edgemed.manifest import ModelManifest
from edgemed.records import Item
from edgemed.session import DEFAULT_MAX_TOKENS
from edgemed_benchmarks.asks import Ask, Work, characters_of, forced_tokens, in_turn, spread
from edgemed_benchmarks.busy_core import SETTLING_SECONDS, busy_core
from edgemed_benchmarks.item_messages import messages_of
from edgemed_benchmarks.outcome import BenchEngine, Outcome, greedy, outcome_of_answer

FORCED_TOKENS = 64
FIRST_WORDS_TOKENS = 16
"""Of an answer that is only asked for its beginning."""
CUT_FACTOR = 1.25
"""An answer that takes this many times the limit is cut: it has missed it, and slow machines have no time."""
_REPETITIONS = {"quick": 1, "standard": 2, "full": 4}
_OTHERS = {"quick": 6, "standard": 12, "full": 24}
_BUSY = {"quick": 0, "standard": 9, "full": 18}


class StoppableEngine(BenchEngine, Protocol):
    """What this suite needs besides: an answer can be cut."""

    def stop(self) -> None:
        """End the answer that is being written."""


def asks(items: Sequence[Item], profile: str) -> list[Ask]:
    """Return what a profile asks of these items, the most telling first."""
    by_class: dict[str, list[Ask]] = {}
    for item in items:
        by_class.setdefault(length_of(item), []).append(Ask("latency", item.id, length_of(item)))
    mixed = in_turn(list(by_class.values()))

    def under(words: str, count: int) -> list[Ask]:
        return [
            ask._replace(condition=f"{words} {ask.condition}".strip(), repetition=index // len(mixed))
            for index, ask in enumerate((mixed * (count // max(1, len(mixed)) + 1))[:count])
        ]

    others = _OTHERS[profile]
    return spread(
        [
            under("saved_prefix", len(mixed) * _REPETITIONS[profile]),
            under(f"saved_prefix forced:{FORCED_TOKENS}", others),
            under(f"no_prefix forced:{FIRST_WORDS_TOKENS}", others),
            under("busy:1", _BUSY[profile]),
        ]
    )


def cold_ask(items: Sequence[Item], block: int) -> Ask | None:
    """Return the ask that comes first after a load; another short item in each block."""
    short = [item for item in items if length_of(item) == "length:short"] or list(items)
    if not short:
        return None
    item = short[block % len(short)]
    return Ask("latency", item.id, f"cold forced:{FIRST_WORDS_TOKENS} {length_of(item)}".strip())


def length_of(item: Item) -> str:
    """Return the item's `length:` tag, or nothing."""
    return next((tag for tag in item.tags if tag.startswith("length:")), "")


def work_of(
    item: Item, manifest: ModelManifest, ask: Ask, *, answer_tokens: Sequence[int], limit_seconds: float
) -> Work:
    """Return what an ask makes the engine do."""
    forced = forced_tokens(ask.condition)
    return Work(
        characters_of(messages_of(item, manifest)),
        written_tokens=answer_tokens if forced is None else (forced,),
        fixed_seconds=SETTLING_SECONDS + 0.5 if "busy:1" in ask.condition else 0.0,
        at_most_seconds=CUT_FACTOR * limit_seconds if forced is None else float("inf"),
    )


def sample(
    engine: StoppableEngine,
    item: Item,
    manifest: ModelManifest,
    condition: str,
    *,
    limit_seconds: float,
    max_tokens: int = DEFAULT_MAX_TOKENS,
    seed: int = 0,
) -> Outcome:
    """Ask one item under one condition.

    Args:
        limit_seconds: what the whole answer may take; after `CUT_FACTOR` times that it is cut.

    Raises:
        QuestionTooLong: the item is too long for this model.
        EdgemedError: as the engine says.
    """
    words = condition.split()
    forced = forced_tokens(condition)
    reuse: Reuse = "nothing" if "no_prefix" in words else "saved_prefix"
    with busy_core() if "busy:1" in words else contextlib.nullcontext():
        events = engine.measure(
            messages_of(item, manifest),
            max_tokens=forced or max_tokens,
            seed=seed,
            reuse=reuse,
            past_end=forced is not None,
            sampling=greedy(manifest),
        )
        cut_seconds = float("inf") if forced else CUT_FACTOR * limit_seconds
        answer, was_cut = _cut_when_late(engine, events, cut_seconds)
    outcome = outcome_of_answer(item.id, answer, condition=condition, forced_length=forced is not None)
    if was_cut and not outcome.explanation:
        return outcome._replace(explanation=f"Cut after {cut_seconds:.0f} s: it had missed the limit.")
    return outcome


def _cut_when_late(
    engine: StoppableEngine, events: Iterator[Event], cut_seconds: float
) -> tuple[Answer, bool]:
    """Read an answer's events; stop it once it has begun and is late."""
    started, was_cut = time.monotonic(), False
    for event in events:
        if isinstance(event, Finished):
            return event.answer, was_cut and event.answer.stop_reason == "cancelled"
        if not was_cut and isinstance(event, Piece) and time.monotonic() - started > cut_seconds:
            was_cut = True
            engine.stop()
    raise EngineError("The engine ended an answer without its measurements.", hint="Start the run again.")
