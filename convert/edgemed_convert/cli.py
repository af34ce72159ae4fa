"""The command line `edgemed-convert`: parse, call one function, print."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgemed import __version__, operating_system
from edgemed.command_line import (
    JSON_OPTION,
    OrderedCommandLine,
    clear_before_errors,
    run_command_line,
    say,
    write_json,
    write_text,
)
from edgemed.errors import NotEnoughMemory
from edgemed_convert.cli_options import (
    ADAPTER_OPTION,
    BASE_NAME_OPTION,
    FILE_OPTION,
    FOLDER_OPTION,
    LICENSE_OPTION,
    NO_LOGITS_OPTION,
    OVERWRITE_OPTION,
    PATH,
    THREADS_OPTION,
    TYPES_OPTION,
    pack_options,
    with_llama_cpp_options,
)

if TYPE_CHECKING:
    from edgemed_convert.progress_line import ProgressLine

FAILED_EXIT_CODE = 3


class _ConvertCommandLine(OrderedCommandLine):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MemoryError as error:
            # A matrix of a whole model did not fit, which no estimate foresaw.
            raise NotEnoughMemory(
                "Memory ran out.", hint="Close other programs, or use a machine with more memory."
            ) from error


@click.group(
    cls=_ConvertCommandLine, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80}
)
@click.version_option(__version__, message="edgemed-convert %(version)s")
def cli() -> None:
    """From a trained adapter to a checked, quantized model for clinics."""


@cli.command("run")
@click.argument("base", type=PATH)
@ADAPTER_OPTION
@TYPES_OPTION
@FOLDER_OPTION
@click.option(
    "--name", metavar="NAME", help="Of the model and its files. Default: of base model and adapters."
)
@LICENSE_OPTION
@BASE_NAME_OPTION
@click.option("--imatrix", type=PATH, metavar="FILE", help="An importance matrix of this model.")
@click.option(
    "--imatrix-data",
    type=PATH,
    metavar="JSONL",
    help="Make an importance matrix of these questions and answers.",
)
@click.option(
    "--intermediate-type",
    default="F16",
    show_default=True,
    metavar="TYPE",
    help="Of the file that is quantized: F16, BF16 or F32.",
)
@NO_LOGITS_OPTION
@click.option("--pack", "with_packs", is_flag=True, help="Make a pack of each file that passes.")
@pack_options
@with_llama_cpp_options
@OVERWRITE_OPTION
@THREADS_OPTION
@JSON_OPTION
def run_command(
    base: Path,
    adapters: tuple[str, ...],
    types: str,
    out: Path,
    name: str | None,
    licence: str | None,
    base_name: str | None,
    imatrix: Path | None,
    imatrix_data: Path | None,
    intermediate_type: str,
    no_logits: bool,
    with_packs: bool,
    with_llama_cpp: Path | None,
    llama_cpp_python: Path | None,
    overwrite: bool,
    threads: int | None,
    as_json: bool,
    **facts: Any,
) -> None:
    """Export, quantize, check and pack the model folder BASE.

    After a kill, the same command goes on where it was.
    """
    from edgemed_convert.arguments import read_types
    from edgemed_convert.estimate import check_need
    from edgemed_convert.run import refuse_existing, run
    from edgemed_convert.run_plan import RunOptions, describe, need_of, plan_run
    from edgemed_convert.run_record import Recorder
    from edgemed_convert.run_text import plan_text, run_remarks, run_table

    options = RunOptions(
        types=read_types(types),
        folder=out,
        name=name,
        base_name=base_name,
        licence=licence,
        intermediate_type=intermediate_type.upper(),
        imatrix=imatrix,
        imatrix_data=imatrix_data,
        converter=_converter(with_llama_cpp, llama_cpp_python),
        pack=_facts(licence, base_name, **facts) if with_packs else None,
        overwrite=overwrite,
        with_logits=not no_logits,
        threads=threads,
    )
    progress = _progress()
    plan = plan_run(base, _adapters(adapters), options, progress)
    recorder = Recorder(out)
    to_do = plan.to_do(recorder)
    need = need_of(plan, to_do)
    progress.clear()
    say(plan_text(describe(plan, to_do, need)))
    if to_do:
        check_need(need, out)
    refuse_existing(plan, to_do, recorder)
    report = run(
        plan, progress=progress, on_step=lambda number, count, name: progress.step(f"{number}/{count} {name}")
    )
    progress.clear()
    if as_json:
        write_json(report)
    else:
        say("")
        write_text(run_table(report))
    for line in run_remarks(report):
        say(line)
    if not report.passed:
        sys.exit(FAILED_EXIT_CODE)


@cli.command("merge")
@click.argument("base", type=PATH)
@click.argument("adapters", nargs=-1, required=True, metavar="ADAPTER...")
@FOLDER_OPTION
@click.option("--dtype", metavar="TYPE", help="F32, F16 or BF16. Default: each weight's own.")
@JSON_OPTION
def merge_command(base: Path, adapters: tuple[str, ...], out: Path, dtype: str | None, as_json: bool) -> None:
    """Write BASE with each ADAPTER merged as a Hugging Face folder.

    DIR:0.5 merges half of an adapter; the first is merged first.
    """
    from edgemed_convert.arguments import read_type
    from edgemed_convert.merge import write_merged
    from edgemed_convert.output import readable_bytes

    kind: Any = read_type(dtype, ("F32", "F16", "BF16")) if dtype else None
    progress = _progress()
    report = write_merged(_model(base, adapters, progress), out, type_name=kind, progress=progress)
    progress.clear()
    if as_json:
        write_json(report)
        return
    write_text(f"{report.folder}: {report.tensors} tensors, {readable_bytes(report.size_bytes)}")
    write_text(f"The adapters changed {report.adapted} of them.")
    if report.untied:
        write_text("The output head is a matrix of its own now; in the base it was the embedding.")


@cli.command("text-model")
@click.argument("folder", type=PATH)
@FOLDER_OPTION
@JSON_OPTION
def text_model_command(folder: Path, out: Path, as_json: bool) -> None:
    """Write the text model alone of a Gemma 3 FOLDER.

    Published Gemma 3 reads images too; training and the other commands take the new folder.
    """
    from edgemed_convert.output import readable_bytes
    from edgemed_convert.text_model import write_text_model

    progress = _progress()
    report = write_text_model(folder, out, progress=progress)
    progress.clear()
    if as_json:
        write_json(report)
        return
    write_text(f"{report.folder}: {report.tensors} tensors, {readable_bytes(report.size_bytes)}")
    left_out = ", ".join(f"{count} of {part}" for part, count in report.left_out.items())
    write_text(f"Left out: {left_out or 'nothing'}.")


@cli.command("export")
@click.argument("model", type=PATH)
@ADAPTER_OPTION
@click.option(
    "--type",
    "file_type",
    default="F16",
    show_default=True,
    metavar="TYPE",
    help="Of the weight matrices: F32, F16, BF16 or Q8_0.",
)
@FILE_OPTION
@click.option("--name", metavar="NAME", help="Of the model. Default: the file's name without type.")
@LICENSE_OPTION
@BASE_NAME_OPTION
@with_llama_cpp_options
@OVERWRITE_OPTION
@JSON_OPTION
def export_command(
    model: Path,
    adapters: tuple[str, ...],
    file_type: str,
    out: Path,
    name: str | None,
    licence: str | None,
    base_name: str | None,
    with_llama_cpp: Path | None,
    llama_cpp_python: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write the model folder MODEL as one GGUF file."""
    from edgemed_convert.arguments import read_type
    from edgemed_convert.commands import export_file
    from edgemed_convert.output import readable_bytes

    kind: Any = read_type(file_type, ("F32", "F16", "BF16", "Q8_0"))
    progress = _progress()
    report = export_file(
        _model(model, adapters, progress),
        out,
        file_type=kind,
        name=name,
        licence=licence,
        base_name=base_name,
        converter=_converter(with_llama_cpp, llama_cpp_python),
        overwrite=overwrite,
        progress=progress,
    )
    progress.clear()
    if as_json:
        write_json(report)
    else:
        types = ", ".join(f"{kind} {count}" for kind, count in report.tensor_types.items())
        write_text(f"{report.path}: {types}, {readable_bytes(report.size_bytes)}")
    for note in report.notes:
        say(f"note: {note}")


@cli.command("quantize")
@click.argument("file", type=PATH)
@TYPES_OPTION
@FOLDER_OPTION
@click.option("--imatrix", type=PATH, metavar="FILE", help="An importance matrix of this model.")
@click.option("--output-type", metavar="TYPE", help="Tensor type of the output head.")
@click.option("--embedding-type", metavar="TYPE", help="Tensor type of the token embeddings.")
@click.option(
    "--tensor-type",
    "tensor_types",
    multiple=True,
    metavar="PATTERN=TYPE",
    help="Tensor type of what a regular expression finds, such as ffn_down=Q8_0.",
)
@click.option("--pure", is_flag=True, help="No mixtures: every matrix gets the same type.")
@click.option("--allow-requantize", is_flag=True, help="Take a file that is quantized already.")
@click.option("--strict", is_flag=True, help="Refuse a type that the model's shape turns into another.")
@OVERWRITE_OPTION
@THREADS_OPTION
@JSON_OPTION
def quantize_command(
    file: Path,
    types: str,
    out: Path,
    imatrix: Path | None,
    output_type: str | None,
    embedding_type: str | None,
    tensor_types: tuple[str, ...],
    threads: int | None,
    as_json: bool,
    **flags: bool,
) -> None:
    """Write quantized copies of the GGUF file FILE."""
    from edgemed_convert.arguments import read_tensor_types, read_types
    from edgemed_convert.llama.process import LlamaProcess
    from edgemed_convert.quantization_plan import QuantizeOptions, plan_quantization
    from edgemed_convert.quantize import quantize
    from edgemed_convert.run_text import quantized_table

    options = QuantizeOptions(
        imatrix=imatrix,
        output_type=output_type,
        embedding_type=embedding_type,
        tensor_types=read_tensor_types(tensor_types),
        **flags,
    )
    names = read_types(types)
    progress = _progress()
    with LlamaProcess(threads=threads) as process:
        plan = plan_quantization(file, names, out, options=options, process=process)
        for warning in plan.warnings:
            say(f"warning: {warning}")
        files = quantize(plan, process=process, progress=progress)
    progress.clear()
    if as_json:
        write_json(files)
    else:
        write_text(quantized_table(files))


@cli.command("imatrix")
@click.argument("file", type=PATH)
@click.option(
    "--data", type=PATH, required=True, metavar="JSONL", help="Questions and answers, one JSON object a line."
)
@FILE_OPTION
@click.option("--chunks", type=int, metavar="N", help="Read at most N chunks of 512 tokens. Default: 200.")
@OVERWRITE_OPTION
@THREADS_OPTION
@JSON_OPTION
def imatrix_command(
    file: Path, data: Path, out: Path, chunks: int | None, overwrite: bool, threads: int | None, as_json: bool
) -> None:
    """Collect an importance matrix of the GGUF file FILE."""
    from edgemed_convert.imatrix import CHUNK_TOKENS, DEFAULT_CHUNKS, collect_imatrix
    from edgemed_convert.llama.process import LlamaProcess

    progress = _progress()
    with LlamaProcess(threads=threads) as process:
        report = collect_imatrix(
            file,
            data,
            out,
            process=process,
            chunks=DEFAULT_CHUNKS if chunks is None else chunks,
            overwrite=overwrite,
            progress=progress,
        )
    progress.clear()
    if as_json:
        write_json(report)
        return
    write_text(f"{report.path}: {report.matrices} matrices, {report.chunks} chunks of {CHUNK_TOKENS} tokens")
    form = (
        "in the model's chat format"
        if report.chat_formatted
        else "as plain text: the file has no chat template"
    )
    write_text(f"{report.examples:,} examples, {report.data_tokens:,} tokens, read {form}.")


@cli.command("check")
@click.argument("model", type=PATH)
@click.argument("files", type=PATH, nargs=-1, required=True, metavar="FILE...")
@ADAPTER_OPTION
@click.option("--parent", type=PATH, metavar="FILE", help="The unquantized file of quantized ones.")
@click.option("--report", "report_path", type=PATH, metavar="FILE", help="Save the report, for pack.")
@NO_LOGITS_OPTION
@OVERWRITE_OPTION
@THREADS_OPTION
@JSON_OPTION
def check_command(
    model: Path,
    files: tuple[Path, ...],
    adapters: tuple[str, ...],
    parent: Path | None,
    report_path: Path | None,
    no_logits: bool,
    overwrite: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Compare each FILE with the model folder MODEL it was made of.

    Ends with 0 when all checks passed, with 3 when one failed.
    """
    from edgemed.check_report import encode_check_report
    from edgemed_convert.check.gate import CheckOptions
    from edgemed_convert.check.report_text import report_text
    from edgemed_convert.commands import check_and_save

    progress = _progress()
    report = check_and_save(
        model,
        files,
        _adapters(adapters),
        report_path=report_path,
        options=CheckOptions(parent=parent, with_logits=not no_logits, threads=threads),
        overwrite=overwrite,
        progress=progress,
    )
    progress.clear()
    if as_json:
        click.echo(encode_check_report(report).decode(), nl=False)
    else:
        write_text(report_text(report), end="")
    if not report.passed:
        sys.exit(FAILED_EXIT_CODE)


@cli.command("adapter")
@click.argument("folder", type=PATH, metavar="DIR")
@click.option("--base", type=PATH, required=True, metavar="FILE", help="The GGUF file that it is used with.")
@FILE_OPTION
@click.option(
    "--type",
    "type_name",
    default="F16",
    show_default=True,
    metavar="TYPE",
    help="Of the adapter's matrices: F32, F16 or BF16.",
)
@click.option("--name", metavar="NAME", help="Of the adapter. Default: its folder's name.")
@LICENSE_OPTION
@click.option(
    "--check",
    "model",
    type=PATH,
    metavar="MODEL",
    help="Compare with this base model folder, the adapter merged.",
)
@click.option("--report", "report_path", type=PATH, metavar="FILE", help="Save what --check found, for pack.")
@OVERWRITE_OPTION
@THREADS_OPTION
@JSON_OPTION
def adapter_command(
    folder: str,
    base: Path,
    out: Path,
    type_name: str,
    name: str | None,
    licence: str | None,
    model: Path | None,
    report_path: Path | None,
    overwrite: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Write the adapter DIR as LoRA GGUF for one base GGUF.

    DIR:0.5 writes half of it.
    """
    from edgemed_convert.arguments import read_adapter, read_type
    from edgemed_convert.commands import adapter_file
    from edgemed_convert.output import readable_bytes

    kind: Any = read_type(type_name, ("F32", "F16", "BF16"))
    progress = _progress()
    report, checked = adapter_file(
        read_adapter(str(folder)),
        base,
        out,
        type_name=kind,
        name=name,
        licence=licence,
        model=model,
        report_path=report_path,
        overwrite=overwrite,
        threads=threads,
        progress=progress,
    )
    progress.clear()
    if as_json:
        write_json({"adapter": report, "check": checked})
    else:
        ranks = ", ".join(f"{rank} ({count} modules)" for rank, count in report.ranks.items())
        write_text(
            f"{report.path}: {readable_bytes(report.size_bytes)}, {report.modules} weights, rank {ranks}"
        )
        write_text(f"For the base file {report.base_name}, SHA-256 {report.base_sha256}")
        found = (
            checked.results[0].sentence
            if checked
            else "Not checked: --check MODEL compares it with the model."
        )
        write_text(found)
    if checked and not checked.passed:
        sys.exit(FAILED_EXIT_CODE)


@cli.command("pack")
@click.argument("files", type=PATH, nargs=-1, required=True, metavar="FILE...")
@FOLDER_OPTION
@click.option("--name", metavar="NAME", help="Of the model, for one FILE. Default: the file's name.")
@click.option(
    "--check-report", "report_path", type=PATH, metavar="FILE", help="Default: check.json beside each FILE."
)
@LICENSE_OPTION
@BASE_NAME_OPTION
@pack_options
@click.option("--force", is_flag=True, help="Pack what failed or was not checked, marked unchecked for good.")
@OVERWRITE_OPTION
@JSON_OPTION
def pack_command(
    files: tuple[Path, ...],
    out: Path,
    name: str | None,
    report_path: Path | None,
    licence: str | None,
    base_name: str | None,
    force: bool,
    overwrite: bool,
    as_json: bool,
    **facts: Any,
) -> None:
    """Make a pack of each FILE for `edgemed models install`."""
    from edgemed_convert.output import readable_bytes
    from edgemed_convert.pack import pack_files

    progress = _progress()
    packs = pack_files(
        files,
        out,
        report_path=report_path,
        facts=_facts(licence, base_name, **facts),
        name=name,
        force=force,
        overwrite=overwrite,
        progress=progress,
    )
    progress.clear()
    if as_json:
        write_json(packs)
        return
    for pack in packs:
        write_text(
            f"{pack.folder}: {readable_bytes(pack.size_bytes)}{', UNCHECKED' if pack.unchecked else ''}"
        )
        if pack.not_run:
            write_text(f"  not proved, for these checks did not run: {', '.join(pack.not_run)}")


@cli.command("inspect")
@click.argument("file", type=PATH)
@JSON_OPTION
def inspect_command(file: Path, as_json: bool) -> None:
    """Show what is in the GGUF file FILE."""
    from edgemed_convert.inspection import as_json as encode
    from edgemed_convert.inspection import inspect_file
    from edgemed_convert.inspection_text import as_text

    facts = inspect_file(file)
    if as_json:
        click.echo(encode(facts).decode())
    else:
        write_text(as_text(facts), end="")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and end the process with its exit code."""
    # Before numpy is loaded. The adapters' products are small: with two threads each waits for the other,
    # and merging takes twice as long (docs/experiments.md).
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    operating_system.raise_on_termination()
    sys.exit(run_command_line(cli, "edgemed-convert", arguments))


def _progress() -> "ProgressLine":
    import shutil

    from edgemed_convert.progress_line import ProgressLine

    line = ProgressLine(
        sys.stderr, is_terminal=sys.stderr.isatty(), columns=shutil.get_terminal_size((80, 24)).columns
    )
    clear_before_errors(line.clear)
    return line


def _adapters(texts: tuple[str, ...]) -> list[tuple[Path, float]]:
    from edgemed_convert.arguments import read_adapter

    return [read_adapter(text) for text in texts]


def _model(folder: Path, adapters: tuple[str, ...], progress: Any) -> Any:
    from edgemed_convert.adapter import Adapter, apply_adapters
    from edgemed_convert.checkpoint import Checkpoint

    base = Checkpoint.open(folder)
    opened = [Adapter.open(path, weight=weight) for path, weight in _adapters(adapters)]
    return apply_adapters(base, opened, progress) if opened else base


def _converter(folder: Path | None, python: Path | None) -> Any:
    from edgemed_convert.llama_cpp_converter import LlamaCppConverter

    return None if folder is None else LlamaCppConverter.find(folder, python)


def _facts(
    licence: str | None,
    base_name: str | None,
    *,
    licence_files: tuple[Path, ...],
    data: tuple[str, ...],
    sampling: str,
    **others: Any,
) -> Any:
    from edgemed_convert.arguments import read_data, read_sampling
    from edgemed_convert.pack_manifest import PackFacts

    return PackFacts(
        licence=licence,
        base_name=base_name,
        licence_files=licence_files,
        data=read_data(data),
        sampling=read_sampling(sampling),
        **others,
    )


if __name__ == "__main__":
    main()
