"""What a run is made of: one question asked once, and how long that will take on this machine.

The suites list their asks, the most telling first, so that any beginning of a list is a sound smaller run;
`plan.py` takes as much of each list as the time allows.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import msgspec

from edgemed.engine.messages import ChatMessage
from edgemed.records import Sample, Suite
from edgemed_benchmarks import canary

T = TypeVar("T")

CANARY_EVERY_SECONDS = canary.EVERY_NS / 1e9


class Ask(NamedTuple):
    """One question, asked once under one condition."""

    suite: Suite
    item_id: str
    condition: str = ""
    repetition: int = 0


class Work(NamedTuple):
    """What an ask makes the engine do."""

    read_characters: int
    """Of the prompt, without what a saved prefix spares."""
    read_tokens: float = 0
    """What is read besides, where the number of tokens is known."""
    written_tokens: Sequence[float] = (0,)
    """Of the answer: one number, or several that are equally likely."""
    fixed_seconds: float = 0.0
    at_most_seconds: float = float("inf")
    """The answer is cut then."""


class Speed(msgspec.Struct, frozen=True, kw_only=True):
    """How fast one arm is on this machine, as the probe before the run found it."""

    load_seconds: float
    prefill_rate: float
    """Tokens per second."""
    decode_rate: float
    """Tokens per second."""
    characters_per_token: float
    overhead_seconds: float = 0.0
    """Around each answer: to hand it to the engine and back, the counters, the line on the disk."""
    canary_seconds: float = 0.0
    """Of the fixed piece of work, which is done at most once in `CANARY_EVERY_SECONDS`."""
    answer_tokens: dict[Suite, list[int]]
    """Lengths of usual answers to the questions of the suites latency, quality and safety, equally likely."""
    answers_known: bool = True
    """False: most of these lengths are a guess, for the model is too slow to see how long its answers are."""


def seconds_of(work: Work, speed: Speed) -> float:
    """Return how long an ask will take."""
    tokens = work.read_tokens + work.read_characters / speed.characters_per_token
    reading = tokens / speed.prefill_rate
    answers = [
        max(reading, min(reading + written / speed.decode_rate, work.at_most_seconds))
        for written in work.written_tokens
    ]
    seconds = speed.overhead_seconds + work.fixed_seconds + sum(answers) / len(answers)
    return seconds + speed.canary_seconds * min(1.0, seconds / CANARY_EVERY_SECONDS)


def characters_of(messages: Sequence[ChatMessage]) -> int:
    """Return how much of a conversation is read anew: all but the system message; template included."""
    return sum(len(message.content) + 8 for message in messages if message.role != "system")


def key_of(sample: Sample) -> tuple[int, int, Ask]:
    """Return block, arm and ask of a sample: the same for the same place in the plan."""
    return sample.block, sample.arm, Ask(sample.suite, sample.item_id, sample.condition, sample.repetition)


def spread(groups: Sequence[Sequence[Ask]]) -> list[Ask]:
    """Merge lists so that every beginning of the result holds about the same share of each.

    The longest list leads where two are even.
    """
    placed = [
        ((index + 0.5) / len(group), -len(group), number, index, ask)
        for number, group in enumerate(groups)
        for index, ask in enumerate(group)
    ]
    return [ask for *_place, ask in sorted(placed)]


def in_turn(groups: Sequence[Sequence[T]]) -> list[T]:
    """Take one of each list after the other until all are empty."""
    longest = max(map(len, groups), default=0)
    return [group[index] for index in range(longest) for group in groups if index < len(group)]


def forced_tokens(condition: str) -> int | None:
    """Return the number of a condition's `forced:` word; None: the answer ends by itself."""
    found = [word.partition(":")[2] for word in condition.split() if word.startswith("forced:")]
    return int(found[0]) if found else None
