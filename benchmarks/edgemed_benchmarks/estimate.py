"""How long the parts of a plan will take, from the speed that the probe found."""

from edgemed.manifest import ModelManifest
from edgemed.records import Item, Suite
from edgemed_benchmarks import (
    suite_endurance,
    suite_energy,
    suite_fidelity,
    suite_latency,
    suite_quality,
    suite_safety,
)
from edgemed_benchmarks.asks import Ask, Speed, Work, characters_of, seconds_of
from edgemed_benchmarks.item_messages import choice_messages, messages_of, short_answer_messages
from edgemed_benchmarks.run_settings import Material, Settings

WARM_UP_TOKENS = 32
_IDLE_SHARE = 0.1
"""Of the run's time, at most."""


def ask_seconds(settings: Settings, ask: Ask, material: Material, speed: Speed) -> float:
    """Return how long one ask will take."""
    return seconds_of(_work(settings, ask, material, speed), speed)


def warm_up_item(material: Material) -> tuple[Suite, Item]:
    """Return the item that is asked after each load and thrown away, the shortest, and its suite."""
    everything = [(suite, item) for suite, items in material.items.items() for item in items]
    return min(
        everything, key=lambda pair: (len(pair[1].question) + sum(map(len, pair[1].history)), pair[1].id)
    )


def warm_up_seconds(settings: Settings, material: Material, speed: Speed) -> float:
    """Return how long the warm-up after a load takes."""
    if not any(material.items.values()):
        return 0.0
    characters = characters_of(messages_of(warm_up_item(material)[1], material.manifest))
    return seconds_of(Work(characters, written_tokens=(WARM_UP_TOKENS,)), speed)


def after_load_seconds(settings: Settings, material: Material, speed: Speed) -> float:
    """Return how long the cold question and the warm-up after a load take."""
    seconds = warm_up_seconds(settings, material, speed)
    cold = suite_latency.cold_ask(material.items.get("latency", []), 0)
    if "latency" in settings.suites and cold:
        seconds += ask_seconds(settings, cold, material, speed)
    return seconds


def has_time_to_idle(settings: Settings) -> bool:
    """Whether the machine may do nothing for so long, to learn what it uses then."""
    return not isinstance(settings.energy, str) and (
        settings.energy.idle_seconds <= _IDLE_SHARE * settings.minutes * 60
    )


def idle_seconds(settings: Settings) -> float:
    """Return for how long the machine does nothing before the energy suite."""
    if isinstance(settings.energy, str) or not has_time_to_idle(settings):
        return 0.0
    return settings.energy.idle_seconds


def _work(settings: Settings, ask: Ask, material: Material, speed: Speed) -> Work:
    manifest = material.manifest
    if ask.suite == "fidelity":
        assert material.reference is not None
        return suite_fidelity.work_of(suite_fidelity.text_of(material.reference, ask))
    item = material.item(ask)
    match ask.suite:
        case "latency":
            return suite_latency.work_of(
                item,
                manifest,
                ask,
                answer_tokens=speed.answer_tokens["latency"],
                limit_seconds=settings.limit_full_seconds,
            )
        case "energy":
            return suite_energy.work_of(item, manifest, speed.answer_tokens["latency"])
        case "endurance":
            return suite_endurance.work_of(item, manifest, ask)
    return _written_or_scored(ask, item, manifest, speed)


def _written_or_scored(ask: Ask, item: Item, manifest: ModelManifest, speed: Speed) -> Work:
    kind = ask.condition.partition(":")[0]
    most = suite_quality.ANSWER_TOKENS if ask.suite == "quality" else suite_safety.ANSWER_TOKENS
    if kind == "text":
        options = sum(map(len, item.options))
        characters = characters_of(short_answer_messages(item, manifest)) + options
        # A few words are too few for the prefill to be faster than writing: each option is one step more.
        return Work(characters, written_tokens=(len(item.options),))
    if kind in ("letters", "written"):
        characters = characters_of(choice_messages(item, manifest, range(len(item.options))))
        return Work(characters, written_tokens=(suite_quality.CHOICE_TOKENS,) if kind == "written" else (0,))
    usual = speed.answer_tokens["quality" if ask.suite == "quality" else "safety"]
    return Work(
        characters_of(messages_of(item, manifest)), written_tokens=[min(most, tokens) for tokens in usual]
    )
