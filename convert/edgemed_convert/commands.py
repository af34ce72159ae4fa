"""What a command does beyond one call of one stage. Called by `cli.py` alone."""

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgemed import __version__
from edgemed.check_report import (
    AppliedAdapter,
    CheckedFile,
    CheckReport,
    CheckResult,
    encode_check_report,
)
from edgemed.errors import UsageError
from edgemed.gguf_header import read_header, tensor_types
from edgemed_convert.adapter import Adapter, MergedCheckpoint
from edgemed_convert.check.gate import CheckOptions, check_files
from edgemed_convert.checkpoint import Checkpoint
from edgemed_convert.export import ExportReport, FileType, export_gguf
from edgemed_convert.licence import find_licence
from edgemed_convert.llama_cpp_converter import LlamaCppConverter, export_with_llama_cpp, folder_to_export
from edgemed_convert.lora import AdapterReport, AdapterType, export_adapter
from edgemed_convert.lora_check import RELATIVE_LIMIT, SHARE_LIMIT, check_against_model
from edgemed_convert.output import Progress, new_file, no_progress
from edgemed_convert.provenance import LICENSE_KEY, provenance_metadata
from edgemed_convert.quantization_plan import target_path


def export_file(
    model: Checkpoint | MergedCheckpoint,
    target: Path,
    *,
    file_type: FileType,
    name: str | None = None,
    licence: str | None = None,
    base_name: str | None = None,
    converter: LlamaCppConverter | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> ExportReport:
    """Write a model as GGUF with its provenance, by our exporter or the user's own llama.cpp.

    Args:
        name: of the model; None: the file's name without its type.
        licence: None: what the base model's folder says.
        base_name: None: the name of its folder.

    Raises:
        EdgemedError: as `export_gguf` and `export_with_llama_cpp` say.
    """
    base = model.base if isinstance(model, MergedCheckpoint) else model
    name = name or target_path(target, target.parent, file_type).stem.removesuffix(f"-{file_type}")
    found = find_licence(base)
    if converter is None:
        extra = provenance_metadata(
            name=name,
            base_name=base_name or base.folder.resolve().name,
            licence=licence or (found.name if found else None),
            adapters=model.adapters if isinstance(model, MergedCheckpoint) else (),
        )
        return export_gguf(
            model, target, file_type=file_type, progress=progress, overwrite=overwrite, extra_metadata=extra
        )
    refuse_existing(target, overwrite=overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".edgemed-export-", dir=target.parent) as scratch:
        folder = folder_to_export(model, Path(scratch), progress)
        export_with_llama_cpp(
            converter, folder, target, file_type=file_type, name=name, overwrite=overwrite, progress=progress
        )
    header = read_header(target)
    return ExportReport(target, file_type, header.file_size, tensor_types(header), ())


def check_and_save(
    model: Path,
    files: Sequence[Path],
    adapters: Sequence[tuple[Path, float]],
    *,
    report_path: Path | None,
    options: CheckOptions,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> CheckReport:
    """Check files, and save the report where a file is named for it.

    Raises:
        UsageError: a file to check is missing, or the report's file exists.
        EdgemedError: as `check_files` says.
    """
    for path in files:
        if not path.is_file():
            raise UsageError(f"There is no file {path}.", hint="Name GGUF files made of this model.")
    if report_path is not None:
        refuse_existing(report_path, overwrite=overwrite)
    opened = [Adapter.open(folder, weight=weight) for folder, weight in adapters]
    report = check_files(model, files, opened, options=options, progress=progress)
    if report_path is not None:
        _save(report, report_path, overwrite=overwrite)
    return report


def adapter_file(
    adapter: tuple[Path, float],
    base: Path,
    target: Path,
    *,
    type_name: AdapterType,
    name: str | None,
    licence: str | None,
    model: Path | None,
    report_path: Path | None,
    overwrite: bool,
    threads: int | None,
    progress: Progress = no_progress,
) -> tuple[AdapterReport, CheckReport | None]:
    """Write an adapter as LoRA GGUF, and compare it with the merged model where its folder is named.

    Raises:
        UsageError: a report is wanted of a check that is not, or its file exists.
        EdgemedError: as `export_adapter` and `check_against_model` say.
    """
    if report_path is not None:
        if model is None:
            raise UsageError(
                "There is no report without a check.", hint="Name the base model's folder: --check MODEL"
            )
        refuse_existing(report_path, overwrite=overwrite)
    checkpoint = None if model is None else Checkpoint.open(model)
    if licence is None and checkpoint is not None and (found := find_licence(checkpoint)):
        licence = found.name
    folder, weight = adapter
    written = export_adapter(
        folder,
        base,
        target,
        type_name=type_name,
        weight=weight,
        name=name,
        extra_metadata={LICENSE_KEY: licence} if licence else None,
        overwrite=overwrite,
        progress=progress,
    )
    if checkpoint is None:
        return written, None
    report = _adapter_report(checkpoint, adapter, written, threads, progress)
    if report_path is not None:
        _save(report, report_path, overwrite=overwrite)
    return written, report


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Refuse early what would be refused only after long work.

    Raises:
        UsageError: the file exists.
    """
    if path.exists() and not overwrite:
        raise UsageError(
            f"{path} exists.", hint="Give the output another name; --overwrite replaces the old file."
        )


def _adapter_report(
    model: Checkpoint,
    adapter: tuple[Path, float],
    written: AdapterReport,
    threads: int | None,
    progress: Progress,
) -> CheckReport:
    folder, weight = adapter
    found = check_against_model(
        model,
        folder,
        written.path,
        weight=weight,
        scratch_folder=written.path.parent,
        threads=threads,
        progress=progress,
    )
    header = read_header(written.path)
    return CheckReport(
        edgemed_version=__version__,
        model=model.folder.resolve().name,
        model_sha256=model.fingerprint(progress),
        adapters=[AppliedAdapter(name=folder.resolve().name, weight=weight)],
        files=[
            CheckedFile(
                name=written.path.name,
                size_bytes=header.file_size,
                sha256=_sha256(written.path),
                quantization_type=written.type_name,
                tensor_types=tensor_types(header),
            )
        ],
        results=[
            CheckResult(
                name="adapter_logits",
                file=written.path.name,
                status="passed" if found.passed else "failed",
                sentence=found.sentence,
                numbers={
                    "relative_difference": found.relative,
                    "share_of_effect": found.share,
                    "effect": found.effect,
                    "top1_share": found.top1_share,
                    "positions": found.positions,
                },
                limit=f"relative difference ≤ {RELATIVE_LIMIT:g}, share of its effect ≤ {SHARE_LIMIT:g}",
            )
        ],
    )


def _save(report: CheckReport, path: Path, *, overwrite: bool) -> None:
    with new_file(path, replace=overwrite) as written:
        written.write_bytes(encode_check_report(report))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
