"""What the tester chose for a run, and what can be asked of each arm."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Literal, NamedTuple

from edgemed.manifest import ModelManifest
from edgemed.records import Item, Suite
from edgemed.reference_logits import ReferenceLogits
from edgemed_benchmarks.asks import Ask
from edgemed_benchmarks.item_files import ItemSuite

Profile = Literal["quick", "standard", "full"]
SUITES: tuple[Suite, ...] = ("latency", "quality", "safety", "fidelity", "energy", "endurance")
ANSWERED_SUITES: tuple[ItemSuite, ...] = ("latency", "quality", "safety")
"""Their questions are answered in words, wholly or in part."""
MINUTES: dict[Profile, float] = {"quick": 10, "standard": 60, "full": 480}


def free_items(items: Mapping[Suite, Sequence[Item]]) -> dict[Suite, list[Item]]:
    """Return the questions that are answered in words, by suite; suites without any are left out."""
    free = {suite: [item for item in items.get(suite, []) if not item.options] for suite in ANSWERED_SUITES}
    return {suite: found for suite, found in free.items() if found}


class EnergyNeeds(NamedTuple):
    """What the machine's source of energy needs for a number that means something."""

    idle_seconds: float
    """Before the first window: what the machine uses while it does nothing."""
    window_seconds: float
    """At least so long."""
    each_answer: bool
    """Whether it is exact over one answer; else all answers make one window."""


class Settings(NamedTuple):
    """What the tester chose."""

    profile: Profile
    suites: Sequence[Suite]
    minutes: float
    limit_full_seconds: float
    seed: int = 0
    energy: EnergyNeeds | str = "This machine does not tell how much energy it uses."
    """A text: why there can be no measurement."""


@dataclasses.dataclass(frozen=True)
class Material:
    """What can be asked of one arm."""

    manifest: ModelManifest
    items: Mapping[Suite, Sequence[Item]]
    reference: ReferenceLogits | None = None

    def item(self, ask: Ask) -> Item:
        """Return the item that an ask means; energy and endurance ask the latency suite's."""
        return self._by_id["latency" if ask.suite in ("energy", "endurance") else ask.suite, ask.item_id]

    @cached_property
    def _by_id(self) -> dict[tuple[Suite, str], Item]:
        return {(suite, item.id): item for suite, items in self.items.items() for item in items}
