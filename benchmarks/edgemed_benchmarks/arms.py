"""The models of a run: what the tester chose, how each is opened, and what it is called."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from edgemed import models
from edgemed.engine.client import ChildEngine
from edgemed.errors import ModelCorrupt, ModelError, ModelNotFound, UsageError
from edgemed.manifest import MANIFEST_NAME
from edgemed.models import InstalledModel
from edgemed.paths import models_folder
from edgemed.records import Arm, Suite
from edgemed.session import DEFAULT_CONTEXT_LENGTH, open_session
from edgemed_benchmarks.run_settings import Profile


class RunOptions(NamedTuple):
    """What the tester chose on the command line."""

    profile: Profile = "quick"
    models: Sequence[str] = ()
    """Names or paths; none is the model in use."""
    suites: Sequence[Suite] = ()
    """None are all that this machine and this model can do."""
    item_sets: Sequence[str] = ()
    """Names or paths: asked in place of edgemed's own of their suite."""
    minutes: float | None = None
    threads: int | None = None
    context_length: int | None = None
    limit_first_seconds: float = 8.0
    limit_full_seconds: float = 60.0
    seed: int = 0
    keep_texts: bool = True
    reference: Path | None = None
    """Reference logits, if not those of the model's pack."""
    battery_watt_hours: float | None = None
    """What the battery holds when full, where the system does not tell."""
    meter: bool = False
    """A person reads a meter in the socket."""


def open_arm(options: RunOptions, model: InstalledModel) -> ChildEngine:
    """Start to load a model, and no other that took its place meanwhile.

    Raises:
        ModelError: it is gone, changed, or does not fit into memory any more.
        EngineError: the engine cannot be started.
    """
    try:
        session = open_session(
            _name_for_opening(model), context_length=options.context_length, threads=options.threads
        )
    except UsageError as error:
        if model.path.exists():
            raise
        raise ModelNotFound(error.message, hint="Put the model back where it was.") from error
    if session.model.manifest.sha256 != model.manifest.sha256:
        session.engine.close()
        raise ModelCorrupt(
            f"{model.name} is another file now than when the run began.", hint="Put the first one back."
        )
    return session.engine


def _name_for_opening(model: InstalledModel) -> str:
    if model.embedded or model.folder.parent == models_folder():
        return model.name
    return str(model.folder if (model.folder / MANIFEST_NAME).is_file() else model.path)


def context_length_of(model: InstalledModel, wanted: int | None) -> int:
    """Return the tokens that a model is opened with."""
    return wanted or min(model.manifest.context_length, DEFAULT_CONTEXT_LENGTH)


def labels_of(chosen: Sequence[InstalledModel]) -> list[str]:
    """Return a short name for each arm: its quantization type where these differ, else the model's name."""
    types = [model.manifest.quantization_type or _main_type(model) for model in chosen]
    names = [model.name for model in chosen]
    labels = types if all(types) and len(set(types)) == len(types) and len(types) > 1 else names
    return [
        label if labels.count(label) == 1 else f"{label} {chosen[place].manifest.sha256[:8]}"
        for place, label in enumerate(labels)
    ]


def _main_type(model: InstalledModel) -> str:
    """Return the type of most of a model's matrices, for a file that does not name its own."""
    matrices = {name: count for name, count in model.manifest.tensor_types.items() if name != "F32"}
    return max(matrices, key=lambda name: matrices[name], default="F32")


def model_of(arm: Arm, given: Sequence[str]) -> InstalledModel:
    """Return the model of an arm: by path where one was given, else among those installed."""
    candidates = [models.find_model(name) for name in given] + models.list_models("model").models
    for model in candidates:
        if model.manifest.sha256 == arm.model_sha256:
            return model
    namesake = next((model for model in candidates if model.name == arm.model_name), None)
    if namesake is not None:
        raise ModelError(
            f"{arm.model_name} is another model now: the run was begun with SHA-256 "
            f"{arm.model_sha256[:16]}…, and this one has {namesake.manifest.sha256[:16]}….",
            hint="Install the model that the run was begun with, or begin a new run.",
        )
    raise ModelError(
        f"The model {arm.model_name} that the run was begun with is not on this computer.",
        hint="Install it again, or name its file: edgemed-bench resume FILE --model PATH",
    )
