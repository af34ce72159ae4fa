"""The plan of a run: which questions, of which model, in which order; and how long that takes.

A plan follows from the profile, the items, the speed that the probe found and nothing else. What it took of
each suite's list is written into the record, so that `resume` makes the same plan again without a probe.
"""

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from edgemed.errors import UsageError
from edgemed.records import Item, Suite
from edgemed_benchmarks import (
    suite_endurance,
    suite_energy,
    suite_fidelity,
    suite_latency,
    suite_quality,
    suite_safety,
)
from edgemed_benchmarks.asks import Ask, Speed, spread
from edgemed_benchmarks.estimate import after_load_seconds, ask_seconds, idle_seconds, warm_up_seconds
from edgemed_benchmarks.run_settings import Material, Profile, Settings
from edgemed_benchmarks.stats import abba_order

_SHARES: dict[Suite, float] = {
    "latency": 0.45,
    "quality": 0.25,
    "safety": 0.15,
    "fidelity": 0.10,
    "endurance": 0.20,
}
_ENERGY_SHARE = 0.4
"""Of the time, at most; of less there is nothing of it."""
_TAIL: tuple[Suite, ...] = ("energy", "endurance")
"""One after the other at the end: they need the machine for themselves, and leave it hot."""
_PLANNED_SHARE = 0.9
"""Of the profile's time; the rest is for what no estimate foresees."""
_LOADS_SHARE = 0.2
"""Of the time, at most, for loading models more often than once."""
_ROUNDS: dict[Profile, tuple[int, int]] = {"quick": (1, 2), "standard": (2, 4), "full": (4, 4)}
"""For one arm, and for several."""


class Block(NamedTuple):
    """What is asked of one arm between two loads."""

    arm: int
    asks: list[Ask]


class Plan(NamedTuple):
    """All blocks in order."""

    blocks: list[Block]
    counts: dict[Suite, int]
    """How many of each suite's list one arm is asked."""
    rounds: int
    skipped: dict[Suite, str]
    """Suites that were wished for, with the reason why nothing of them is asked."""

    @property
    def order(self) -> list[int]:
        """Return the arm of each block."""
        return [block.arm for block in self.blocks]


def make_plan(settings: Settings, materials: Sequence[Material], speeds: Sequence[Speed]) -> Plan:
    """Return the plan that fits into the time.

    Args:
        materials: one for each arm; the items are the same.
        speeds: one for each arm.

    Raises:
        UsageError: nothing is left to ask.
    """
    lists, skipped = _lists(settings, materials, speeds[0])
    rounds = _rounds(settings, speeds)
    seconds = settings.minutes * 60 * _PLANNED_SHARE
    seconds -= sum(
        rounds * (speed.load_seconds + after_load_seconds(settings, material, speed))
        for material, speed in zip(materials, speeds, strict=True)
    )
    costs = {suite: _costs(settings, suite, asks, materials, speeds) for suite, asks in lists.items()}
    if "fidelity" in costs:
        costs["fidelity"] = _beginning(costs["fidelity"], suite_fidelity.LONGEST_SECONDS * len(materials))
    if "energy" in costs and sum(costs["energy"]) > _ENERGY_SHARE * seconds:
        # A part of a window gives no number.
        skipped["energy"] = "its source needs more time than there is"
        del costs["energy"]
    counts = _counts(costs, max(0.0, seconds))
    for suite in [suite for suite, count in counts.items() if not count]:
        skipped[suite] = "one question of it takes longer than there is time"
        del counts[suite]
    if not counts:
        raise UsageError(
            "There is nothing to ask: "
            + "; ".join(f"{suite}: {why}" for suite, why in skipped.items())
            + ".",
            hint="Choose other suites with --suite, or give more time with --minutes.",
        )
    return plan_of(settings, materials, speeds[0], counts, rounds)._replace(skipped=skipped)


def plan_of(
    settings: Settings,
    materials: Sequence[Material],
    speed: Speed,
    counts: Mapping[Suite, int],
    rounds: int,
) -> Plan:
    """Return the plan that takes so many asks of each suite's list; the same each time.

    Args:
        speed: of the first arm.
    """
    lists, _skipped = _lists(settings, materials, speed)
    taken = {suite: lists[suite][:count] for suite, count in counts.items()}
    return Plan(list(_blocks(settings, materials, taken, rounds)), dict(counts), rounds, {})


def lasting_seconds(settings: Settings, block: Block, material: Material, speed: Speed) -> dict[Suite, float]:
    """Return the time that a block gives to each suite that is measured over a stretch of time, in order."""
    seconds: dict[Suite, float] = {}
    for ask in block.asks:
        if _is_lasting(settings, ask.suite):
            seconds[ask.suite] = seconds.get(ask.suite, 0.0) + ask_seconds(settings, ask, material, speed)
    return seconds


def idle_seconds_of(settings: Settings, block: Block) -> float:
    """Return for how long the machine does nothing in a block."""
    return idle_seconds(settings) if any(ask.suite == "energy" for ask in block.asks) else 0.0


def plan_seconds(
    settings: Settings, plan: Plan, materials: Sequence[Material], speeds: Sequence[Speed]
) -> float:
    """Return how long the whole plan will take."""
    seconds = 0.0
    for block in plan.blocks:
        material, speed = materials[block.arm], speeds[block.arm]
        seconds += speed.load_seconds + warm_up_seconds(settings, material, speed)
        seconds += sum(ask_seconds(settings, ask, material, speed) for ask in block.asks)
        seconds += idle_seconds_of(settings, block)
    return seconds


def _is_lasting(settings: Settings, suite: Suite) -> bool:
    """Whether a suite is measured over a stretch of time, not over so many answers."""
    needs = settings.energy
    has_one_window = not isinstance(needs, str) and not needs.each_answer
    return suite == "endurance" or (suite == "energy" and has_one_window)


def _lists(
    settings: Settings, materials: Sequence[Material], speed: Speed
) -> tuple[dict[Suite, list[Ask]], dict[Suite, str]]:
    """Return what each suite would ask with all the time in the world, and why a suite asks nothing."""
    lists: dict[Suite, list[Ask]] = {}
    skipped: dict[Suite, str] = {}
    material = materials[0]
    for suite in settings.suites:
        lists[suite] = _list(settings, suite, material, speed)
        if suite == "fidelity":
            references = [each.reference for each in materials]
            if not all(references):
                skipped[suite] = "the model came without reference logits"
            texts = [len(suite_fidelity.asks(reference)) for reference in references if reference]
            lists[suite] = lists[suite][: min(texts, default=0)] if suite not in skipped else []
        if suite == "energy" and isinstance(settings.energy, str):
            skipped[suite] = settings.energy
        if suite == "endurance" and not suite_endurance.SECONDS[settings.profile]:
            skipped[suite] = f"the profile {settings.profile} is too short for it"
        if not lists[suite]:
            skipped.setdefault(suite, "there are no questions for it")
            del lists[suite]
    return lists, skipped


def _list(settings: Settings, suite: Suite, material: Material, speed: Speed) -> list[Ask]:
    items = _shuffled(material.items.get(suite, []), settings.seed)
    latency_items = material.items.get("latency", [])
    match suite:
        case "latency":
            return suite_latency.asks(latency_items, settings.profile)
        case "quality":
            return _passes(suite, items, suite_quality.conditions)
        case "safety":
            return _passes(suite, items, suite_safety.conditions)
        case "fidelity":
            return suite_fidelity.asks(material.reference) if material.reference else []
        case "energy":
            return _energy(settings, material, latency_items, speed)
        case "endurance":
            return suite_endurance.asks(latency_items, material.manifest, settings.profile, speed)


def _energy(settings: Settings, material: Material, items: Sequence[Item], speed: Speed) -> list[Ask]:
    if isinstance(settings.energy, str) or not items:
        return []
    asks = [Ask("energy", item.id) for item in items]
    mean_seconds = sum(ask_seconds(settings, ask, material, speed) for ask in asks) / len(asks)
    return suite_energy.asks(items, settings.profile, settings.energy, mean_seconds)


def _passes(suite: Suite, items: Sequence[Item], conditions: Callable[[Item], list[str]]) -> list[Ask]:
    """All items under their first condition, kinds mixed; then all under their second, and so on."""
    by_kind: dict[str, list[Item]] = {}
    for item in items:
        by_kind.setdefault(_kind(item), []).append(item)
    mixed = spread([[Ask(suite, item.id) for item in group] for group in by_kind.values()])
    conditions_of = {item.id: conditions(item) for item in items}
    most = max((len(each) for each in conditions_of.values()), default=0)
    return [
        ask._replace(condition=conditions_of[ask.item_id][place])
        for place in range(most)
        for ask in mixed
        if place < len(conditions_of[ask.item_id])
    ]


def _kind(item: Item) -> str:
    """Return what a suite must have some of at any time: each kind of probe, choices beside free answers."""
    probe = next((tag for tag in item.tags if tag in suite_safety.TAGS), "")
    return probe or ("choice" if item.options else "free")


def _shuffled(items: Sequence[Item], seed: int) -> list[Item]:
    """Shuffle items by groups: what belongs together (a request and its harmless twin) stays together."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.group or item.id, []).append(item)
    order = sorted(groups)
    random.Random(seed).shuffle(order)
    return [item for group in order for item in groups[group]]


def _rounds(settings: Settings, speeds: Sequence[Speed]) -> int:
    one, several = _ROUNDS[settings.profile]
    wished = one if len(speeds) == 1 else several
    load_seconds = sum(speed.load_seconds for speed in speeds)
    affordable = int(_LOADS_SHARE * settings.minutes * 60 / max(load_seconds, 0.001))
    return max(1, min(wished, affordable))


def _costs(
    settings: Settings,
    suite: Suite,
    asks: Sequence[Ask],
    materials: Sequence[Material],
    speeds: Sequence[Speed],
) -> list[float]:
    """Return the seconds that each ask takes, of all arms together."""
    pairs = list(zip(materials, speeds, strict=True))
    costs = [sum(ask_seconds(settings, ask, material, speed) for material, speed in pairs) for ask in asks]
    if suite == "energy" and costs:
        costs[0] += idle_seconds(settings) * len(materials)
    return costs


def _counts(costs: Mapping[Suite, Sequence[float]], seconds: float) -> dict[Suite, int]:
    """Return how many asks of each suite fit: the next is always of the suite that has least of its share."""
    counts: dict[Suite, int] = dict.fromkeys(costs, 0)
    spent: dict[Suite, float] = dict.fromkeys(costs, 0.0)
    if "energy" in costs:
        counts["energy"] = len(costs["energy"])
        seconds -= sum(costs["energy"])
    still = [suite for suite in costs if suite != "energy"]
    while still:
        suite = min(still, key=lambda suite: spent[suite] / _SHARES[suite])
        if counts[suite] == len(costs[suite]) or costs[suite][counts[suite]] > seconds:
            still.remove(suite)
            continue
        cost = costs[suite][counts[suite]]
        counts[suite] += 1
        spent[suite] += cost
        seconds -= cost
    return counts


def _beginning(costs: Sequence[float], seconds: float) -> list[float]:
    """Return as many of the first costs as are within some seconds, but one at least."""
    sums = list(itertools.accumulate(costs))
    return [cost for cost, total in zip(costs, sums, strict=True) if total <= max(seconds, sums[0])]


def _blocks(
    settings: Settings, materials: Sequence[Material], taken: Mapping[Suite, Sequence[Ask]], rounds: int
) -> Iterator[Block]:
    """Yield the blocks: the suites' lists in `rounds` equal parts, then energy and endurance for each arm."""
    arms = len(materials)
    order = abba_order(arms, rounds)
    tail = [ask for suite in _TAIL for ask in taken.get(suite, [])]
    for place, arm in enumerate(order):
        part = place // arms
        parts = [
            list(asks[len(asks) * part // rounds : len(asks) * (part + 1) // rounds])
            for suite, asks in taken.items()
            if suite not in _TAIL
        ]
        asks = spread(parts)
        cold = suite_latency.cold_ask(materials[arm].items.get("latency", []), part)
        if "latency" in taken and cold:
            asks.insert(0, cold)
        if place == len(order) - 1:
            # The last arm is loaded already.
            yield Block(arm, asks + tail)
        else:
            yield Block(arm, asks)
    if tail:
        for arm in dict.fromkeys(reversed(order)):
            if arm != order[-1]:
                yield Block(arm, list(tail))
