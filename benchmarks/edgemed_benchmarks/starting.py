"""What happens before the first question: find models and questions, see how fast all is, make the plan."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from edgemed import models
from edgemed.engine.client import ChildEngine
from edgemed.errors import UsageError
from edgemed.manifest import REFERENCE_LOGITS_NAME
from edgemed.models import InstalledModel
from edgemed.records import Item, ItemFile, Suite
from edgemed.reference_logits import ReferenceLogits, read_reference
from edgemed_benchmarks.arms import RunOptions, open_arm
from edgemed_benchmarks.asks import Speed
from edgemed_benchmarks.errors import ItemError
from edgemed_benchmarks.interruption import Interruption
from edgemed_benchmarks.item_files import ItemSet, find_item_set, shipped_sets
from edgemed_benchmarks.overhead import Overhead
from edgemed_benchmarks.plan import Plan, make_plan, plan_seconds
from edgemed_benchmarks.probe import PROBE_SECONDS, probe
from edgemed_benchmarks.run_settings import MINUTES, SUITES, EnergyNeeds, Material, Settings

NO_OVERHEAD = Overhead(0.0, 0.0)
_SHORT_LOAD_SECONDS = 2.0
_PROBE_SHARE = 1 / 40
"""Of the run's time: on a fast machine a probe lasts no longer."""
_ASK_LATENCY_ITEMS = {"latency", "energy", "endurance"}


class Prepared(NamedTuple):
    """All that a run needs."""

    options: RunOptions
    settings: Settings
    models: list[InstalledModel]
    item_files: list[ItemFile]
    materials: list[Material]
    speeds: list[Speed]
    plan: Plan
    seconds: float
    """How long the plan will take."""

    def open_engine(self, arm: int) -> ChildEngine:
        """Start to load an arm's model.

        Raises:
            ModelError: it is gone, changed, or does not fit into memory any more.
        """
        return open_arm(self.options, self.models[arm])


def choose(options: RunOptions) -> tuple[list[InstalledModel], list[ItemSet]]:
    """Find the models and the questions, and refuse what cannot be run: quickly, before anything is measured.

    Raises:
        UsageError: an option is out of range, or two arms are the same model.
        ItemError: a file of questions cannot be used.
        ModelError: a model is missing or damaged.
    """
    _check(options)
    chosen = [models.find_model(name) for name in options.models or (None,)]
    _refuse_twins(chosen)
    return chosen, _chosen_sets(options)


def prepare(
    options: RunOptions,
    interruption: Interruption,
    *,
    energy: EnergyNeeds | str,
    overhead: Overhead = NO_OVERHEAD,
    on_step: Callable[[str], None] = lambda _words: None,
) -> Prepared:
    """Find models and questions, measure the models' speed for some seconds each, and make the plan.

    Args:
        overhead: what is done around each answer, besides asking.

    Raises:
        UsageError, ItemError: as `choose` says, or nothing can be asked.
        ModelError: a model is missing, changed, or does not fit into memory.
        EngineError: the engine failed.
    """
    chosen, sets = choose(options)
    settings = Settings(
        profile=options.profile,
        suites=options.suites or SUITES,
        minutes=options.minutes or MINUTES[options.profile],
        limit_full_seconds=options.limit_full_seconds,
        seed=options.seed,
        energy=energy,
    )
    items = items_of(sets, settings.suites)
    materials = [Material(model.manifest, items, reference_of(options, model)) for model in chosen]
    speeds = []
    for model, material in zip(chosen, materials, strict=True):
        on_step(f"{model.name}: seeing how fast it is here")
        found = _probe(options, model, material, sets, interruption, settings.minutes)
        speeds.append(
            msgspec.structs.replace(
                found,
                overhead_seconds=found.overhead_seconds + overhead.each_seconds,
                canary_seconds=overhead.canary_seconds,
            )
        )
    plan = make_plan(settings, materials, speeds)
    used = set(plan.counts) | ({"latency"} if _ASK_LATENCY_ITEMS & set(plan.counts) else set())
    return Prepared(
        options=options,
        settings=settings,
        models=chosen,
        item_files=[each.item_file for each in sets if each.suite in used],
        materials=materials,
        speeds=speeds,
        plan=plan,
        seconds=plan_seconds(settings, plan, materials, speeds),
    )


class KeptPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What `resume` needs to make the plan again; in the record's options, as JSON."""

    counts: dict[Suite, int]
    rounds: int
    minutes: float
    energy: EnergyNeeds | None
    context_length: int | None
    speeds: list[Speed]


def kept_plan(prepared: Prepared) -> str:
    """Return the plan as it stands in the record."""
    kept = KeptPlan(
        counts=prepared.plan.counts,
        rounds=prepared.plan.rounds,
        minutes=prepared.settings.minutes,
        energy=None if isinstance(prepared.settings.energy, str) else prepared.settings.energy,
        context_length=prepared.options.context_length,
        speeds=prepared.speeds,
    )
    return msgspec.json.encode(kept).decode()


def _check(options: RunOptions) -> None:
    if options.threads is not None and options.threads < 1:
        raise UsageError(
            f"--threads must be 1 or more, not {options.threads}.", hint="Leave it out to let edgemed choose."
        )
    for name, value, least, most in (
        ("--minutes", options.minutes, 0.5, 7 * 24 * 60),
        ("--limit-first", options.limit_first_seconds, 0.01, 3600),
        ("--limit-full", options.limit_full_seconds, 0.01, 24 * 3600),
    ):
        if value is not None and not least <= value <= most:
            raise UsageError(f"{name} must be from {least:g} to {most:g}, not {value:g}.")


def _refuse_twins(chosen: Sequence[InstalledModel]) -> None:
    seen: dict[str, str] = {}
    for model in chosen:
        if model.manifest.sha256 in seen:
            raise UsageError(
                f"{model.name} and {seen[model.manifest.sha256]} are the same file.",
                hint="Give each model once.",
            )
        seen[model.manifest.sha256] = model.name


def _chosen_sets(options: RunOptions) -> list[ItemSet]:
    given = [find_item_set(name) for name in options.item_sets]
    replaced = {each.suite for each in given}
    shipped = [
        each
        for suite in ("latency", "quality", "safety")
        if suite not in replaced
        for each in shipped_sets(suite)
    ]
    return [*given, *shipped]


def items_of(sets: Sequence[ItemSet], suites: Sequence[Suite]) -> dict[Suite, list[Item]]:
    """Return the questions by suite; those of the latency suite serve two others too."""
    wanted = set(suites) | ({"latency"} if _ASK_LATENCY_ITEMS & set(suites) else set())
    items: dict[Suite, list[Item]] = {}
    for each in sets:
        if each.suite not in wanted:
            continue
        ids = {item.id for item in items.get(each.suite, [])}
        for item in each.items:
            if item.id in ids:
                raise ItemError(f"{each.path}: the id {item.id!r} is in another set of this run, too.")
        items.setdefault(each.suite, []).extend(each.items)
    return items


def reference_of(options: RunOptions, model: InstalledModel) -> ReferenceLogits | None:
    path = options.reference or model.folder / REFERENCE_LOGITS_NAME
    if options.reference is None and not path.is_file():
        return None
    return read_reference(path)


def _probe(
    options: RunOptions,
    model: InstalledModel,
    material: Material,
    sets: Sequence[ItemSet],
    interruption: Interruption,
    minutes: float,
) -> Speed:
    with interruption.waiting():
        engine = open_arm(options, model)
        try:
            found = probe(
                engine,
                material,
                [item for each in sets for item in each.items],
                lasting_seconds=min(PROBE_SECONDS, _PROBE_SHARE * 60 * minutes),
            )
        finally:
            engine.close()
        if found.load_seconds < _SHORT_LOAD_SECONDS:
            return found
        # The first load read the file from the disk; those of the run find it in memory, if there is enough.
        engine = open_arm(options, model)
        try:
            started = time.monotonic()
            engine.wait_until_ready()
            return msgspec.structs.replace(found, load_seconds=time.monotonic() - started)
        finally:
            engine.close()
