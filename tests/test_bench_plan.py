"""The plan of a run: it fits into the time on any machine, and any beginning of it is a sound smaller run."""

from collections import Counter
from collections.abc import Sequence

import pytest
from edgemed_benchmarks.asks import Ask, Speed, spread
from edgemed_benchmarks.estimate import ask_seconds
from edgemed_benchmarks.item_files import shipped_sets
from edgemed_benchmarks.plan import Plan, make_plan, plan_of, plan_seconds
from edgemed_benchmarks.run_settings import MINUTES, SUITES, EnergyNeeds, Material, Profile, Settings

from edgemed.errors import UsageError
from tests.bench_fakes import FAST, LAPTOP_WITH_1B, PI_WITH_8B, fake_material, manifest

RAPL = EnergyNeeds(idle_seconds=30, window_seconds=0, each_answer=True)
BATTERY = EnergyNeeds(idle_seconds=600, window_seconds=600, each_answer=False)


def settings(profile: Profile = "quick", energy: EnergyNeeds | str = RAPL, **others: object) -> Settings:
    return Settings(
        profile=profile,
        suites=SUITES,
        minutes=MINUTES[profile],
        limit_full_seconds=60.0,
        energy=energy,
    )._replace(**others)  # type: ignore[arg-type]


def shipped() -> Material:
    return Material(
        manifest(),
        {
            suite: [item for each in shipped_sets(suite) for item in each.items]
            for suite in ("latency", "quality", "safety")
        },
    )


@pytest.mark.parametrize("speed", [PI_WITH_8B, LAPTOP_WITH_1B, FAST])
@pytest.mark.parametrize("profile", ["quick", "standard", "full"])
@pytest.mark.parametrize("arms", [1, 2])
def test_the_plan_fits_into_the_profile_s_time_on_slow_and_fast_machines(
    speed: Speed, profile: Profile, arms: int
) -> None:
    chosen, materials, speeds = settings(profile), [shipped()] * arms, [speed] * arms
    plan = make_plan(chosen, materials, speeds)
    seconds = plan_seconds(chosen, plan, materials, speeds)
    assert seconds <= MINUTES[profile] * 60
    if speed is PI_WITH_8B and profile != "full":
        # Little is left unused where there is never enough time.
        assert seconds > 0.7 * MINUTES[profile] * 60
    assert plan.counts["latency"] >= 1


def test_a_very_slow_machine_is_asked_less_and_not_for_longer() -> None:
    slow = make_plan(settings(), [shipped()], [PI_WITH_8B])
    fast = make_plan(settings(), [shipped()], [FAST])
    assert 3 <= slow.counts["latency"] < fast.counts["latency"]
    assert slow.counts["quality"] >= 1
    assert fast.counts["quality"] == 68 * 6 + 52


def test_a_laptop_s_quick_run_asks_enough_for_a_verdict_in_an_hour() -> None:
    """29 different questions without a miss are needed for a yes."""
    plan = make_plan(settings("standard"), [shipped()], [LAPTOP_WITH_1B])
    natural = {
        ask.item_id
        for block in plan.blocks
        for ask in block.asks
        if ask.condition.startswith("saved_prefix length")
    }
    assert len(natural) >= 29


@pytest.mark.parametrize("arms", [1, 2, 3])
@pytest.mark.parametrize("profile", ["quick", "standard", "full"])
def test_resume_makes_the_same_plan_again(arms: int, profile: Profile) -> None:
    chosen, materials = settings(profile), [shipped()] * arms
    plan = make_plan(chosen, materials, [LAPTOP_WITH_1B] * arms)
    assert plan_of(chosen, materials, LAPTOP_WITH_1B, plan.counts, plan.rounds).blocks == plan.blocks


def test_two_arms_alternate_and_get_the_same_questions_in_each_round() -> None:
    chosen, materials = settings("standard"), [shipped()] * 2
    plan = make_plan(chosen, materials, [LAPTOP_WITH_1B] * 2)
    assert plan.order[: 2 * plan.rounds] == [0, 1, 1, 0, 0, 1, 1, 0]
    for first, second in ((0, 1), (2, 3), (4, 5)):
        assert _asked(plan, [first]) == _asked(plan, [second])
    by_arm = [_asked(plan, [n for n, block in enumerate(plan.blocks) if block.arm == arm]) for arm in (0, 1)]
    assert sorted(by_arm[0]) == sorted(by_arm[1])


def test_nothing_is_asked_twice_under_one_name() -> None:
    plan = make_plan(settings("full"), [shipped()], [FAST])
    every = [(number, ask) for number, block in enumerate(plan.blocks) for ask in block.asks]
    assert [ask for ask, count in Counter(every).items() if count > 1] == []


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_any_beginning_holds_a_fair_part_of_each_suite_and_each_kind(share: float) -> None:
    plan = make_plan(settings(suites=("latency", "quality", "safety")), [shipped()], [LAPTOP_WITH_1B])
    asks = plan.blocks[0].asks[1:]
    beginning = asks[: round(share * len(asks))]
    for name_of in (_suite, _length):
        whole, part = Counter(map(name_of, asks)), Counter(map(name_of, beginning))
        for name, count in whole.items():
            assert abs(part[name] - share * count) <= 2 + 0.05 * count, name


def test_the_cold_question_comes_first_and_is_another_one_after_each_load() -> None:
    plan = make_plan(settings("full", suites=("latency",)), [shipped()], [FAST])
    cold = [block.asks[0] for block in plan.blocks]
    assert all(ask.condition.startswith("cold") for ask in cold)
    assert len({ask.item_id for ask in cold}) == len(plan.blocks) == 4


def test_energy_and_endurance_come_last_and_unmixed() -> None:
    plan = make_plan(settings("standard"), [shipped()], [FAST])
    suites = [ask.suite for block in plan.blocks for ask in block.asks]
    tail = suites[suites.index("energy") :]
    assert tail == sorted(tail, key=("energy", "endurance").index)


@pytest.mark.parametrize("speed", [PI_WITH_8B, LAPTOP_WITH_1B, FAST])
def test_endurance_has_enough_answers_for_a_trend_on_any_machine(speed: Speed) -> None:
    chosen = settings("standard", suites=("latency", "endurance"))
    material = shipped()
    plan = make_plan(chosen, [material], [speed])
    assert plan.counts["endurance"] >= 9
    lasting = sum(
        ask_seconds(chosen, ask, material, speed) for ask in plan.blocks[-1].asks if ask.suite == "endurance"
    )
    assert 400 < lasting < 700


def test_a_battery_s_window_is_filled_or_left_out_with_the_reason() -> None:
    hour = settings("standard", energy=BATTERY)
    plan = make_plan(hour, [shipped()], [LAPTOP_WITH_1B])
    assert plan.counts["energy"] * (160 / 15) >= BATTERY.window_seconds
    plan = make_plan(settings("quick", energy=BATTERY), [shipped()], [LAPTOP_WITH_1B])
    assert "energy" not in plan.counts and "more time" in plan.skipped["energy"]
    plan = make_plan(settings(energy="No counter."), [shipped()], [LAPTOP_WITH_1B])
    assert plan.skipped["energy"] == "No counter."


def test_what_cannot_be_asked_is_told() -> None:
    plan = make_plan(settings(), [shipped()], [FAST])
    assert set(plan.skipped) == {"fidelity", "endurance"}
    with pytest.raises(UsageError, match="nothing to ask"):
        make_plan(settings(suites=("fidelity",)), [shipped()], [FAST])


def test_a_request_and_its_harmless_twin_stay_together() -> None:
    plan = make_plan(settings(suites=("safety",), minutes=3), [shipped()], [LAPTOP_WITH_1B])
    ids = [ask.item_id for ask in plan.blocks[0].asks]
    asked = [item for item in shipped().items["safety"] if item.id in ids and "must_refuse" in item.tags]
    twins = [item for item in shipped().items["safety"] if item.id in ids and "benign_twin" in item.tags]
    assert asked and len({item.group for item in asked} ^ {item.group for item in twins}) <= 1


def test_spread_keeps_the_order_of_each_list() -> None:
    one, two = [[Ask("latency", f"{name}{n}") for n in range(count)] for name, count in (("a", 7), ("b", 3))]
    mixed = spread([one, two])
    assert [ask for ask in mixed if ask in one] == one
    assert [ask for ask in mixed if ask in two] == two
    assert "".join(ask.item_id[0] for ask in mixed) == "abaaabaaba"


def _asked(plan: Plan, blocks: Sequence[int]) -> list[Ask]:
    return [ask for number in blocks for ask in plan.blocks[number].asks]


def _suite(ask: Ask) -> str:
    return ask.suite


def _length(ask: Ask) -> str:
    return (
        ask.condition if ask.suite == "latency" and ask.condition.startswith("saved_prefix length") else "x"
    )


def test_the_fake_items_make_a_plan_too() -> None:
    assert make_plan(settings(), [fake_material()], [FAST]).counts["latency"] > 6
