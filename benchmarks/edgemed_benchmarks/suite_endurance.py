"""The endurance suite: answer after answer without a pause, until heat or memory would show.

Answers of one length, so that each can be compared with the first; the report looks for a rate that falls and
for memory that grows.
"""

from collections.abc import Sequence

from edgemed.manifest import ModelManifest
from edgemed.records import Item
from edgemed_benchmarks.asks import Ask, Speed, Work, characters_of, forced_tokens, seconds_of
from edgemed_benchmarks.item_messages import messages_of
from edgemed_benchmarks.outcome import BenchEngine, Outcome, answer_of, greedy, outcome_of_answer

LENGTHS = (128, 64, 32)
"""Tokens of each answer; the slower the machine, the shorter, for two dozen answers show a trend."""
_ENOUGH = 24
SECONDS = {"quick": 0.0, "standard": 600.0, "full": 5400.0}
"""A laptop's case is warm after about 10 minutes, and as hot as it gets after an hour."""
_MOST_ASKS = 20_000


def asks(items: Sequence[Item], manifest: ModelManifest, profile: str, speed: Speed) -> list[Ask]:
    """Return as many asks as fill the profile's time at this speed."""
    if not items:
        return []
    mean_seconds: dict[int, float] = {}
    for tokens in LENGTHS:
        asks = [Ask("endurance", item.id, f"forced:{tokens}") for item in items]
        works = [work_of(item, manifest, ask) for item, ask in zip(items, asks, strict=True)]
        mean_seconds[tokens] = sum(seconds_of(work, speed) for work in works) / len(items)
        if mean_seconds[tokens] * _ENOUGH <= SECONDS[profile]:
            break
    count = min(_MOST_ASKS, round(SECONDS[profile] / mean_seconds[tokens]))
    return [asks[index % len(items)]._replace(repetition=index // len(items)) for index in range(count)]


def work_of(item: Item, manifest: ModelManifest, ask: Ask) -> Work:
    """Return what an ask makes the engine do."""
    forced = forced_tokens(ask.condition) or 0
    return Work(characters_of(messages_of(item, manifest)), written_tokens=(forced,))


def sample(
    engine: BenchEngine, item: Item, manifest: ModelManifest, condition: str, *, seed: int = 0
) -> Outcome:
    """Write one answer of the length that the condition says.

    Raises:
        EdgemedError: as the engine says.
    """
    events = engine.measure(
        messages_of(item, manifest),
        max_tokens=forced_tokens(condition) or LENGTHS[0],
        seed=seed,
        reuse="saved_prefix",
        past_end=True,
        sampling=greedy(manifest),
    )
    return outcome_of_answer(item.id, answer_of(events), condition=condition, forced_length=True)
