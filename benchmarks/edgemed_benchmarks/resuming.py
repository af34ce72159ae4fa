"""A run that goes on: the same models by their SHA-256, the same questions by theirs, the same plan."""

from collections.abc import Sequence

import msgspec

from edgemed import __version__
from edgemed.errors import ModelError
from edgemed.records import ItemFile
from edgemed_benchmarks.arms import RunOptions, model_of
from edgemed_benchmarks.errors import ItemError, RecordError
from edgemed_benchmarks.item_files import ItemSet, find_item_set, read_item_set, set_paths
from edgemed_benchmarks.journal import Run
from edgemed_benchmarks.plan import plan_of, plan_seconds
from edgemed_benchmarks.run_settings import Material, Settings
from edgemed_benchmarks.starting import KeptPlan, Prepared, items_of, reference_of


def prepare_resume(run: Run, options: RunOptions) -> Prepared:
    """Make the plan of a run again, from its record.

    Args:
        options: models, item sets and reference by path, where the run had them so; nothing else counts.

    Raises:
        RecordError: the run is over, or was begun by another version of edgemed.
        ModelError: a model is missing, or is another one now; both are named.
        ItemError: a file of questions is missing or another one now.
    """
    start = run.start
    if run.end is not None and run.end.finished:
        raise RecordError(
            f"{run.path} is finished; there is nothing left to ask.",
            hint=f"See it: edgemed-bench report {run.path}",
        )
    if start.edgemed_version != __version__:
        raise RecordError(
            f"{run.path} was begun with edgemed {start.edgemed_version}, and this is {__version__}: "
            "its plan may be another one.",
            hint="Go on with the version that began it, or begin a new run.",
        )
    chosen = [model_of(arm, options.models) for arm in start.arms]
    kept = msgspec.json.decode(start.options["plan"], type=KeptPlan)
    settings = Settings(
        profile=start.profile,
        suites=start.suites,
        minutes=kept.minutes,
        limit_full_seconds=start.full_answer_limit_seconds,
        seed=start.seed,
        energy=kept.energy or "",
    )
    options = options._replace(
        profile=start.profile,
        threads=start.arms[0].threads,
        context_length=kept.context_length,
        keep_texts=start.texts_kept,
        seed=start.seed,
    )
    sets = [_set_of(wanted, options.item_sets) for wanted in start.item_files]
    items = items_of(sets, ("latency", "quality", "safety"))
    materials = [Material(model.manifest, items, reference_of(options, model)) for model in chosen]
    if "fidelity" in kept.counts and not all(material.reference for material in materials):
        raise ModelError(
            "The reference logits that the run compared with are gone.",
            hint="Copy the model's pack again, or give them with --reference.",
        )
    plan = plan_of(settings, materials, kept.speeds[0], kept.counts, kept.rounds)
    if plan.order != start.order:
        raise RecordError(f"{run.path}: the plan cannot be made again.", hint="Begin a new run.")
    seconds = plan_seconds(settings, plan, materials, kept.speeds)
    return Prepared(options, settings, chosen, start.item_files, materials, kept.speeds, plan, seconds)


def _set_of(wanted: ItemFile, given: Sequence[str]) -> ItemSet:
    known = set_paths()
    candidates = [find_item_set(name) for name in given]
    if wanted.name in known:
        candidates.append(read_item_set(known[wanted.name]))
    for each in candidates:
        if each.sha256 == wanted.sha256:
            return each
    raise ItemError(
        f"The questions {wanted.name} that the run was begun with are not there, or are others now.",
        hint="Give their file with --items, or begin a new run.",
    )
