"""From an ask of the plan to the suite that can ask it."""

from typing import Protocol

from edgemed_benchmarks import (
    suite_endurance,
    suite_energy,
    suite_fidelity,
    suite_latency,
    suite_quality,
    suite_safety,
)
from edgemed_benchmarks.asks import Ask
from edgemed_benchmarks.estimate import WARM_UP_TOKENS, warm_up_item
from edgemed_benchmarks.item_messages import messages_of
from edgemed_benchmarks.outcome import Outcome, answer_of, greedy, outcome_of_answer
from edgemed_benchmarks.probe import ProbedEngine
from edgemed_benchmarks.run_settings import Material, Settings

WARM_UP = "warm_up"


class BenchedEngine(ProbedEngine, Protocol):
    """What a run needs of an engine; `edgemed.engine.client.ChildEngine` is the real one."""

    llama_cpp_build: str
    """Known when the engine is ready."""

    @property
    def process_id(self) -> int | None:
        """The child's process id, while there is one."""

    def close(self) -> None:
        """End the engine. May be called twice."""


def ask_engine(engine: BenchedEngine, ask: Ask, material: Material, settings: Settings) -> Outcome:
    """Ask one question of the plan.

    Raises:
        QuestionTooLong: the question does not fit into this model's context.
        EdgemedError: as the engine says.
    """
    manifest = material.manifest
    if ask.condition == WARM_UP:
        return _warm_up(engine, ask, material)
    if ask.suite == "fidelity":
        assert material.reference is not None
        return suite_fidelity.sample(engine, material.reference, ask, manifest)
    item = material.item(ask)
    match ask.suite:
        case "latency":
            limit = settings.limit_full_seconds
            return suite_latency.sample(
                engine, item, manifest, ask.condition, limit_seconds=limit, seed=settings.seed
            )
        case "quality":
            return suite_quality.sample(engine, item, manifest, ask.condition, seed=settings.seed)
        case "safety":
            return suite_safety.sample(engine, item, manifest, ask.condition, seed=settings.seed)
        case "energy":
            return suite_energy.sample(engine, item, manifest, seed=settings.seed)
    return suite_endurance.sample(engine, item, manifest, ask.condition, seed=settings.seed)


def warm_up_ask(material: Material) -> Ask | None:
    """Return what is asked after a load and thrown away; None: there are no questions at all."""
    if not any(material.items.values()):
        return None
    suite, item = warm_up_item(material)
    return Ask(suite, item.id, WARM_UP)


def _warm_up(engine: BenchedEngine, ask: Ask, material: Material) -> Outcome:
    manifest = material.manifest
    events = engine.measure(
        messages_of(material.item(ask), manifest),
        max_tokens=WARM_UP_TOKENS,
        reuse="saved_prefix",
        sampling=greedy(manifest),
    )
    return outcome_of_answer(ask.item_id, answer_of(events), condition=WARM_UP)
