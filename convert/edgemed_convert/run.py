"""The whole way in one command: export, quantize, check, pack; each stage once, however often it is stopped.

`run.json` beside the files records what is done (`run_record.py`). What is needed only for a while stands in
a folder of its own, and goes when every check has passed.
"""

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from edgemed.check_report import CheckReport, encode_check_report, read_check_report
from edgemed.errors import FileInUse, StorageError, UsageError
from edgemed.operating_system import lock_file
from edgemed_convert.check.gate import CheckOptions, check_files
from edgemed_convert.errors import CheckFailed
from edgemed_convert.export import FileType, export_gguf
from edgemed_convert.imatrix import collect_imatrix
from edgemed_convert.llama.process import LlamaProcess
from edgemed_convert.llama_cpp_converter import export_with_llama_cpp, folder_to_export
from edgemed_convert.output import Progress, new_file, no_progress, storage_error
from edgemed_convert.pack import pack_file
from edgemed_convert.provenance import provenance_metadata
from edgemed_convert.quantization_plan import QuantizeOptions, plan_quantization
from edgemed_convert.quantize import quantize
from edgemed_convert.run_plan import WORK_NAME, RunPlan, Stage, plan_stages
from edgemed_convert.run_record import Recorder

LOCK_NAME = ".run.lock"

OnStep = Callable[[int, int, str], None]
"""Called with number, count and name of a stage that begins."""


@dataclass(frozen=True)
class RunFile:
    """One file that a run made."""

    path: Path
    type_name: str
    """What it was asked to be."""
    tensor_types: dict[str, int]
    """Types really present → number of tensors."""
    bits_per_weight: float
    size_bytes: int
    passed: bool
    failures: list[str]
    """Sentences of the checks that failed."""
    mean_kl_nats: float | None = None
    """Against the file that was quantized, on English text."""
    pack: Path | None = None


@dataclass(frozen=True)
class RunReport:
    """What a run made."""

    folder: Path
    name: str
    files: list[RunFile]
    check_report: Path
    passed: bool
    """Whether every file passed, the one that was quantized among them."""
    not_run: list[str]
    """Sentences of the checks that could not run here."""
    parent_failures: list[str] = field(default_factory=list)
    """Of the file that was quantized, where that is not kept."""
    warnings: list[str] = field(default_factory=list)
    left_behind: Path | None = None
    """Folder with the file that was quantized, kept where a check failed."""


def run(
    plan: RunPlan, *, progress: Progress = no_progress, on_step: OnStep = lambda number, count, name: None
) -> RunReport:
    """Do what is not done yet.

    Raises:
        UsageError: another run works in the folder, or a file is in the way.
        EdgemedError: what the stages say.
    """
    folder = plan.options.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(folder, error) from error
    with _only_run(folder):
        recorder = Recorder(folder)
        to_do = plan.to_do(recorder)
        refuse_existing(plan, to_do, recorder)
        _remove_leftovers(folder)
        return _Run(plan, recorder, to_do, progress, on_step).finish()


def refuse_existing(plan: RunPlan, to_do: Sequence[Stage], recorder: Recorder) -> None:
    """Refuse to write over what no earlier try of this very run wrote.

    Raises:
        UsageError: a file is in the way.
    """
    if plan.options.overwrite:
        return
    for stage in to_do:
        ours = recorder.was_begun(stage.name, stage.identity)
        # A new report takes the place of an older one of the same folder.
        ours = ours or (stage is plan.check and recorder.knows(stage.name))
        for path in stage.outputs:
            if path.exists() and plan.is_kept(path) and not ours:
                raise UsageError(
                    f"{path} exists, and is not what this run would make of its inputs.",
                    hint="Name another folder; --overwrite replaces the old file.",
                )


class _Run:
    """The stages, one after another."""

    def __init__(
        self, plan: RunPlan, recorder: Recorder, to_do: Sequence[Stage], progress: Progress, on_step: OnStep
    ) -> None:
        self._plan = plan
        self._options = plan.options
        self._recorder = recorder
        self._to_do = list(to_do)
        self._progress = progress
        self._on_step = on_step
        self._plain_folder: Path | None = None

    def finish(self) -> RunReport:
        plan = self._plan
        if self._to_do:
            with _storage(plan.work_folder):
                plan.work_folder.mkdir(exist_ok=True)
        for type_name, stage in plan.exports.items():
            with self._stage(stage) as warnings:
                if warnings is not None:
                    warnings += self._export(type_name, stage)
        self._quantize()
        report = self._check()
        packed = self._pack(report)
        if report.passed:
            shutil.rmtree(plan.work_folder, ignore_errors=True)
        return self._report(report, packed)

    @contextlib.contextmanager
    def _stage(self, stage: Stage) -> Iterator[list[str] | None]:
        """Yield a list for warnings, or None when there is nothing to do; record that it ended."""
        if stage not in self._to_do:
            yield None
            return
        self._on_step(self._to_do.index(stage) + 1, len(self._to_do), stage.name)
        self._recorder.begin(stage.name, stage.identity)
        warnings: list[str] = []
        yield warnings
        self._recorder.end(stage.name, stage.identity, stage.outputs, warnings)

    def _export(self, type_name: str, stage: Stage) -> Sequence[str]:
        plan, converter = self._plan, self._options.converter
        if converter is not None:
            if self._plain_folder is None:
                self._plain_folder = folder_to_export(plan.model, plan.work_folder, self._progress)
            export_with_llama_cpp(
                converter,
                self._plain_folder,
                stage.output,
                file_type=type_name,
                name=plan.name,
                overwrite=True,
                progress=self._progress,
            )
            return []
        report = export_gguf(
            plan.model,
            stage.output,
            file_type=cast("FileType", type_name),
            progress=self._progress,
            overwrite=True,
            extra_metadata=provenance_metadata(
                name=plan.name,
                base_name=plan.base_name,
                licence=plan.licence.name if plan.licence else None,
                adapters=plan.adapters,
            ),
        )
        return report.notes

    def _quantize(self) -> None:
        plan = self._plan
        todo = {name: stage for name, stage in plan.quantizations.items() if stage in self._to_do}
        with LlamaProcess(threads=self._options.threads) as process:
            if plan.imatrix and self._options.imatrix_data and plan.source:
                with self._stage(plan.imatrix) as warnings:
                    if warnings is not None:
                        collect_imatrix(
                            plan.source,
                            self._options.imatrix_data,
                            plan.imatrix.output,
                            process=process,
                            overwrite=True,
                            progress=self._progress,
                        )
            if not todo or plan.source is None:
                return
            matrix = plan.imatrix.output if plan.imatrix else self._options.imatrix
            whole = plan_quantization(
                plan.source,
                list(todo),
                self._options.folder,
                options=QuantizeOptions(imatrix=matrix, overwrite=True),
                process=process,
            )
            for file in whole.files:
                with self._stage(todo[file.type_name]) as warnings:
                    if warnings is not None:
                        one = dataclasses.replace(whole, files=[file])
                        (written,) = quantize(one, process=process, progress=self._progress)
                        warnings += written.warnings

    def _check(self) -> CheckReport:
        plan, stage = self._plan, self._plan.check
        if stage not in self._to_do:
            return read_check_report(stage.output)
        self._on_step(self._to_do.index(stage) + 1, len(self._to_do), stage.name)
        self._recorder.begin(stage.name, stage.identity)
        report = check_files(
            plan.base,
            plan.checked,
            plan.adapters,
            options=CheckOptions(
                with_logits=self._options.with_logits,
                scratch_folder=plan.work_folder,
                threads=self._options.threads,
            ),
            progress=self._progress,
        )
        with new_file(stage.output, replace=True) as written:
            written.write_bytes(encode_check_report(report))
        if report.passed:
            # A failed one is made again: what failed may have been mended.
            self._recorder.end(stage.name, stage.identity, stage.outputs)
        return report

    def _pack(self, report: CheckReport) -> dict[str, Path]:
        """Return type → pack; a file that failed has none."""
        packed: dict[str, Path] = {}
        for type_name, stage in self._plan.packs.items():
            file = self._plan.kept[type_name]
            with contextlib.suppress(CheckFailed), self._stage(stage) as warnings:
                if warnings is not None and self._plan.facts is not None:
                    pack_file(
                        file,
                        self._options.folder,
                        report_path=self._plan.check.output,
                        facts=self._plan.facts,
                        overwrite=True,
                        progress=self._progress,
                    )
                packed[type_name] = stage.output
        return packed

    def _report(self, report: CheckReport, packed: dict[str, Path]) -> RunReport:
        plan = self._plan
        parents = [path for path in plan.checked if not plan.is_kept(path)]
        return RunReport(
            folder=self._options.folder,
            name=plan.name,
            files=[
                self._file(type_name, path, report, packed.get(type_name))
                for type_name, path in plan.kept.items()
            ],
            check_report=plan.check.output,
            passed=report.passed,
            not_run=[f"{result.file}, {result.name}: {result.sentence}" for result in report.not_run],
            parent_failures=[
                f"{result.name}: {result.sentence}"
                for path in parents
                for result in report.failures(path.name)
            ],
            warnings=[
                warning for stage in plan_stages(plan) for warning in self._recorder.warnings(stage.name)
            ],
            left_behind=plan.work_folder if plan.work_folder.exists() else None,
        )

    def _file(self, type_name: str, path: Path, report: CheckReport, pack: Path | None) -> RunFile:
        found = next((file for file in report.files if file.name == path.name), None)
        loss = next((loss for loss in report.quantization_losses if loss.file == path.name), None)
        failures = [f"{result.name}: {result.sentence}" for result in report.failures(path.name)]
        return RunFile(
            path=path,
            type_name=type_name,
            tensor_types=found.tensor_types if found else {},
            bits_per_weight=found.bits_per_weight if found else 0.0,
            size_bytes=path.stat().st_size,
            passed=not failures,
            failures=failures,
            mean_kl_nats=loss.mean_kl_nats if loss else None,
            pack=pack,
        )


@contextlib.contextmanager
def _only_run(folder: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock_file(folder / LOCK_NAME))
        except FileInUse as error:
            raise UsageError(
                f"Another run is writing into {folder}.",
                hint="Wait until it has finished, or name another folder.",
            ) from error
        except StorageError:
            # A disk without locks; a folder that cannot be written says so in the next step.
            pass
        yield


def _remove_leftovers(folder: Path) -> None:
    """Delete what a killed run left half-written, unless another command is writing it at this moment."""
    for place in (folder, folder / WORK_NAME):
        for path in place.glob(".*.partial*"):
            lock = place / f"{path.name.partition('.partial')[0]}.lock"
            with contextlib.suppress(FileInUse, StorageError):
                with lock_file(lock):
                    if path.is_dir():
                        shutil.rmtree(path, ignore_errors=True)
                    else:
                        path.unlink(missing_ok=True)
                lock.unlink(missing_ok=True)


@contextlib.contextmanager
def _storage(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise storage_error(path, error) from error
