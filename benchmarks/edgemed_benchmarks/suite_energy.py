"""The energy suite: what one answer costs, in joules.

Natural answers, one after the other, in windows: a counter is exact over one answer, a battery's gauge only
over many. The runner reads the source of energy before and after each window; the window's energy stands in
its last sample.
"""

import math
from collections.abc import Sequence

from edgemed.manifest import ModelManifest
from edgemed.records import Item
from edgemed.session import DEFAULT_MAX_TOKENS
from edgemed_benchmarks.asks import Ask, Work, characters_of
from edgemed_benchmarks.item_messages import messages_of
from edgemed_benchmarks.outcome import BenchEngine, Outcome, answer_of, greedy, outcome_of_answer
from edgemed_benchmarks.run_settings import EnergyNeeds

ANSWERS = {"quick": 6, "standard": 12, "full": 40}
_SPARE = 1.2
"""A window that turns out shorter than the source needs would be thrown away."""


def asks(items: Sequence[Item], profile: str, needs: EnergyNeeds, mean_seconds: float) -> list[Ask]:
    """Return what a profile asks: so many answers that the source's least window is filled.

    Args:
        needs: of the source.
        mean_seconds: what an answer takes here.
    """
    least = 0 if needs.each_answer else math.ceil(_SPARE * needs.window_seconds / mean_seconds)
    return [
        Ask("energy", items[index % len(items)].id, "", index // len(items))
        for index in range(max(least, ANSWERS[profile]) if items else 0)
    ]


def work_of(item: Item, manifest: ModelManifest, answer_tokens: Sequence[int]) -> Work:
    """Return what an ask makes the engine do."""
    return Work(characters_of(messages_of(item, manifest)), written_tokens=answer_tokens)


def sample(engine: BenchEngine, item: Item, manifest: ModelManifest, *, seed: int = 0) -> Outcome:
    """Let the model answer as the app would.

    Raises:
        EdgemedError: as the engine says.
    """
    events = engine.measure(
        messages_of(item, manifest),
        max_tokens=DEFAULT_MAX_TOKENS,
        seed=seed,
        reuse="saved_prefix",
        sampling=greedy(manifest),
    )
    return outcome_of_answer(item.id, answer_of(events))
