"""What a whole conversion will do: its stages, what they depend on, and what they need; nothing is written.

Called by `run.py`, and by the command line to say it first.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from pathlib import Path

from edgemed.check_report import CHECK_REPORT_NAME
from edgemed.errors import UsageError
from edgemed_convert.adapter import Adapter, MergedCheckpoint, apply_adapters
from edgemed_convert.adapter_template import template_for_packs, template_sentence
from edgemed_convert.arguments import checked_name, clean_name
from edgemed_convert.checkpoint import Checkpoint
from edgemed_convert.estimate import Need, estimate_need
from edgemed_convert.families.registry import find_family
from edgemed_convert.licence import Licence, find_licence, licence_files
from edgemed_convert.llama_cpp_converter import LlamaCppConverter
from edgemed_convert.output import Progress, no_progress, readable_bytes
from edgemed_convert.pack import pack_path
from edgemed_convert.pack_manifest import PackFacts
from edgemed_convert.provenance import adapter_name
from edgemed_convert.quantization_types import UNQUANTIZED_TYPES
from edgemed_convert.run_record import Recorder, identity_of
from edgemed_convert.safetensors_file import stored_bytes

WORK_NAME = ".edgemed-run"
"""Folder in the output folder for what is needed only for a while."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What is wanted of a run."""

    types: Sequence[str]
    """Of the files to keep, by llama.cpp's names."""
    folder: Path
    """Where everything goes."""
    name: str | None = None
    """Of the model and the beginning of its files' names; None: of the base model and the adapters."""
    base_name: str | None = None
    """None: the base model folder's name."""
    licence: str | None = None
    """None: what the base model's folder says."""
    intermediate_type: str = "F16"
    """Of the file that is quantized."""
    imatrix: Path | None = None
    imatrix_data: Path | None = None
    """JSON Lines to collect an importance matrix on."""
    converter: LlamaCppConverter | None = None
    """The user's own llama.cpp instead of our exporter."""
    pack: PackFacts | None = None
    """None: no packs."""
    overwrite: bool = False
    with_logits: bool = True
    threads: int | None = None


@dataclass(frozen=True)
class Stage:
    """A piece of work, done as a whole or not at all."""

    name: str
    """Such as "quantize Q8_0"."""
    identity: str
    outputs: tuple[Path, ...]

    @property
    def output(self) -> Path:
        """The only output."""
        return self.outputs[0]


@dataclass(frozen=True)
class RunPlan:
    """Everything a run needs to know, looked up and compared."""

    base: Checkpoint
    adapters: tuple[Adapter, ...]
    model: Checkpoint | MergedCheckpoint
    options: RunOptions
    name: str
    base_name: str
    licence: Licence | None
    facts: PackFacts | None
    exports: dict[str, Stage]
    """By type; the file that is quantized may be one that is not kept."""
    imatrix: Stage | None
    quantizations: dict[str, Stage]
    check: Stage
    packs: dict[str, Stage]
    """By type."""

    @property
    def work_folder(self) -> Path:
        """Where files stand that are not kept."""
        return self.options.folder / WORK_NAME

    @property
    def source(self) -> Path | None:
        """The file that is quantized, None when nothing is."""
        return self.exports[self.options.intermediate_type].output if self.quantizations else None

    @property
    def kept(self) -> dict[str, Path]:
        """Type → file that stays, in the order asked for."""
        stages = {**self.exports, **self.quantizations}
        return {name: stages[name].output for name in self.options.types}

    @property
    def checked(self) -> list[Path]:
        """Every file that goes through the gate."""
        return list(
            dict.fromkeys([stage.output for stage in self.exports.values()] + list(self.kept.values()))
        )

    def is_kept(self, path: Path) -> bool:
        """Whether a file stays when the run has ended."""
        return path.parent != self.work_folder

    def to_do(self, recorder: Recorder) -> list[Stage]:
        """Return what is not done, in order; the source is made again only if something needs it."""

        def missing(stages: Sequence[Stage]) -> list[Stage]:
            return [stage for stage in stages if not recorder.is_done(stage.name, stage.identity)]

        later = missing([*([self.imatrix] if self.imatrix else []), *self.quantizations.values(), self.check])
        exports = [
            stage for stage in missing(list(self.exports.values())) if later or self.is_kept(stage.output)
        ]
        if exports and self.check not in later:
            later = [*later, self.check]
        return [*exports, *later, *missing(list(self.packs.values()))]


def plan_run(
    base_folder: Path,
    adapters: Sequence[tuple[Path, float]],
    options: RunOptions,
    progress: Progress = no_progress,
) -> RunPlan:
    """Open everything, refuse what cannot be done, and return the plan.

    Args:
        adapters: folder and weight of each, the first applied first.

    Raises:
        EdgemedError: the base or an adapter is not usable, an option is wrong, the licence is not known.
    """
    base = Checkpoint.open(base_folder)
    opened = tuple(Adapter.open(folder, weight=weight) for folder, weight in adapters)
    model = apply_adapters(base, opened, progress) if opened else base
    if options.converter is None:
        find_family(model)
    _check_options(options)
    licence = Licence(options.licence, "--license") if options.licence else find_licence(base)
    facts = _facts(options, model, licence)
    name = checked_name(options.name) if options.name else _name(base, opened)
    base_name = options.base_name or base.folder.resolve().name
    exports = _exports(options, model, name, base_name, licence)
    imatrix, quantizations = _quantizations(options, name, exports)
    check = _check(options, model, [*exports.values(), *quantizations.values()])
    stages = {**exports, **quantizations}
    packs = {
        type_name: _pack(options, facts, type_name, stages[type_name])
        for type_name in (options.types if facts else ())
    }
    return RunPlan(
        base,
        opened,
        model,
        options,
        name,
        base_name,
        licence,
        facts,
        exports,
        imatrix,
        quantizations,
        check,
        packs,
    )


def need_of(plan: RunPlan, to_do: Sequence[Stage]) -> Need:
    """Return what the remaining stages need of disk and memory."""
    stages = {**plan.exports, **plan.quantizations}
    new_types = [type_name for type_name, stage in stages.items() if stage in to_do]
    merged_bytes = 0
    if plan.options.converter and plan.adapters and any(stage in to_do for stage in plan.exports.values()):
        merged_bytes = sum(
            stored_bytes(tensor.type_name, tensor.shape) for tensor in plan.model.weights.values()
        )
    return estimate_need(
        plan.model.weights, plan.options.folder, new_types=new_types, merged_bytes=merged_bytes
    )


def describe(plan: RunPlan, to_do: Sequence[Stage], need: Need) -> Iterator[tuple[str, str]]:
    """Yield label and text of what a person should know before it begins."""
    parameters = sum(prod(tensor.shape) for tensor in plan.model.weights.values())
    yield (
        "model",
        f"{plan.base.folder} ({plan.base.architecture}, {parameters / 1e6:,.1f} million parameters)",
    )
    for adapter in plan.adapters:
        ranks = ", ".join(map(str, adapter.ranks())) or "none"
        weight = "" if adapter.weight == 1 else f", weight {adapter.weight:g}"
        yield "adapter", f"{adapter.folder} (rank {ranks}{weight})"
    licence = plan.licence
    yield "licence", f"{licence.name} (from {licence.source})" if licence else "not known"
    yield "output", f"{plan.options.folder}: {', '.join(path.name for path in plan.kept.values())}"
    if sentence := template_sentence(plan.model, plan.facts.chat_template if plan.facts else None):
        yield "template", sentence
    done = len(plan_stages(plan)) - len(to_do)
    if not to_do:
        yield "to do", "nothing: everything is done already"
        return
    yield "to do", ", ".join(stage.name for stage in to_do) + (f" ({done} done already)" if done > 0 else "")
    if plan.check in to_do:
        yield "logits", _logits_sentence(plan.options, need)
    yield (
        "disk",
        f"about {readable_bytes(need.disk_bytes)} needed, {readable_bytes(need.free_disk_bytes)} free",
    )
    yield (
        "memory",
        f"about {readable_bytes(need.memory_bytes)} needed, {readable_bytes(need.free_memory_bytes)} free",
    )


def plan_stages(plan: RunPlan) -> list[Stage]:
    """Return every stage, done or not, in order."""
    imatrix = [plan.imatrix] if plan.imatrix else []
    return [
        *plan.exports.values(), *imatrix, *plan.quantizations.values(), plan.check, *plan.packs.values()
    ]  # fmt: skip


def _logits_sentence(options: RunOptions, need: Need) -> str:
    if not options.with_logits:
        return "not compared, as asked; the report will say so"
    if need.logits == "none":
        return "not compared: torch and transformers are not installed; the report will say so"
    if need.logits == "first layers":
        return "of the first layers compared with transformers: the whole model needs more memory"
    return "of the whole model compared with transformers"


def _check_options(options: RunOptions) -> None:
    if options.intermediate_type not in UNQUANTIZED_TYPES:
        raise UsageError(
            f"{options.intermediate_type} cannot be the type that is quantized.",
            hint=f"Take one of {', '.join(UNQUANTIZED_TYPES)}.",
        )
    if options.imatrix and options.imatrix_data:
        raise UsageError(
            "An importance matrix is named, and data to make one.", hint="Give --imatrix or --imatrix-data."
        )
    facts = options.pack.files() if options.pack else []
    for path in (options.imatrix, options.imatrix_data, *facts):
        if path is not None and not path.is_file():
            raise UsageError(f"There is no file {path}.", hint="Check the spelling.")


def _facts(
    options: RunOptions, model: Checkpoint | MergedCheckpoint, licence: Licence | None
) -> PackFacts | None:
    if options.pack is None:
        return None
    if licence is None:
        raise UsageError(
            f"Nothing in {model.folder} says under which licence the model may be used.",
            hint="Look it up where the model came from, and name it: --license apache-2.0",
        )
    facts = options.pack
    texts = facts.licence_files or tuple(licence_files(model.folder))
    return dataclasses.replace(
        facts,
        licence=facts.licence or licence.name,
        licence_files=texts,
        chat_template=facts.chat_template or template_for_packs(model),
    )


def _name(base: Checkpoint, adapters: Sequence[Adapter]) -> str:
    return clean_name("-".join([base.folder.resolve().name, *map(adapter_name, adapters)]))


def _exports(
    options: RunOptions,
    model: Checkpoint | MergedCheckpoint,
    name: str,
    base_name: str,
    licence: Licence | None,
) -> dict[str, Stage]:
    kept = [type_name for type_name in options.types if type_name in UNQUANTIZED_TYPES]
    wanted = list(kept)
    if len(kept) < len(options.types) and options.intermediate_type not in kept:
        wanted.insert(0, options.intermediate_type)
    adapters = model.adapters if isinstance(model, MergedCheckpoint) else ()
    script = [options.converter.script] if options.converter else []
    stages = {}
    for type_name in wanted:
        folder = options.folder if type_name in kept else options.folder / WORK_NAME
        identity = identity_of(
            "export",
            type_name,
            name,
            base_name,
            licence.name if licence else None,
            [adapter.weight for adapter in adapters],
            files=[*model.files(), *script],
        )
        stages[type_name] = Stage(f"export {type_name}", identity, (folder / f"{name}-{type_name}.gguf",))
    return stages


def _quantizations(
    options: RunOptions, name: str, exports: dict[str, Stage]
) -> tuple[Stage | None, dict[str, Stage]]:
    wanted = [type_name for type_name in options.types if type_name not in UNQUANTIZED_TYPES]
    if not wanted:
        return None, {}
    source = exports[options.intermediate_type].identity
    imatrix = None
    matrix: list[Path] = [options.imatrix] if options.imatrix else []
    if options.imatrix_data:
        identity = identity_of("imatrix", source, files=[options.imatrix_data])
        imatrix = Stage("importance matrix", identity, (options.folder / f"{name}-imatrix.gguf",))
    stages = {
        type_name: Stage(
            f"quantize {type_name}",
            identity_of("quantize", type_name, source, imatrix.identity if imatrix else None, files=matrix),
            (options.folder / f"{name}-{type_name}.gguf",),
        )
        for type_name in wanted
    }
    return imatrix, stages


def _check(options: RunOptions, model: Checkpoint | MergedCheckpoint, stages: Sequence[Stage]) -> Stage:
    # A package that is installed later can compare what could not be compared before.
    packages = [find_spec(name) is not None for name in ("torch", "transformers")]
    identity = identity_of(
        "check",
        [stage.identity for stage in stages],
        options.with_logits,
        packages if options.with_logits else packages[1],
        files=model.files(),
    )
    return Stage("check", identity, (options.folder / CHECK_REPORT_NAME,))


def _pack(options: RunOptions, facts: PackFacts | None, type_name: str, stage: Stage) -> Stage:
    texts = repr(facts)
    identity = identity_of("pack", stage.identity, texts, files=facts.files() if facts else [])
    return Stage(f"pack {type_name}", identity, (pack_path(stage.output, options.folder),))
