"""What a run is made of: one question asked once, and how long that will take on this machine.

The suites list their asks, the most telling first, so that any beginning of a list is a sound smaller run;
`plan.py` takes as much of each list as the time allows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from edgemed.engine.messages import ChatMessage
from edgemed.records import Sample, Suite

OVERHEAD_SECONDS = 0.05
"""Around each answer: the canary, the counters and the line on the disk."""


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
    written_tokens: float = 0
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
    answer_tokens: float
    """Of a usual answer that ends by itself."""


def seconds_of(work: Work, speed: Speed) -> float:
    """Return how long an ask will take."""
    reading = work.read_characters / speed.characters_per_token / speed.prefill_rate
    writing = work.written_tokens / speed.decode_rate
    answer = max(reading, min(reading + writing, work.at_most_seconds))
    return OVERHEAD_SECONDS + work.fixed_seconds + answer


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


def in_turn(groups: Sequence[Sequence[Ask]]) -> list[Ask]:
    """Take one of each list after the other until all are empty."""
    longest = max(map(len, groups), default=0)
    return [group[index] for index in range(longest) for group in groups if index < len(group)]


def forced_tokens(condition: str) -> int | None:
    """Return the number of a condition's `forced:` word; None: the answer ends by itself."""
    found = [word.partition(":")[2] for word in condition.split() if word.startswith("forced:")]
    return int(found[0]) if found else None
