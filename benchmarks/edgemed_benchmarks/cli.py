"""The command line `edgemed-bench`: parse, call one function, print."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgemed import __version__, operating_system
from edgemed.command_line import (
    JSON_OPTION,
    OrderedCommandLine,
    clear_before_errors,
    clear_progress,
    run_command_line,
    say,
    write_json,
    write_text,
)
from edgemed_benchmarks.cli_options import ITEMS_OPTION, MODEL_OPTION, PATH, REFERENCE_OPTION, run_options
from edgemed_benchmarks.cli_suites import suites_group

if TYPE_CHECKING:
    from edgemed_benchmarks.run_text import ProgressLine

DAMAGED_EXIT_CODE = 1


@click.group(
    cls=OrderedCommandLine, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80}
)
@click.version_option(__version__, message="edgemed-bench %(version)s")
def cli() -> None:
    """What this machine and this model really do: how fast, how good, how safe.

    Ends with 0 when the limits are met, 2 when they are not, 3 when more questions are needed to tell, and 4
    when the machine was unfit to measure on.
    """


@cli.command("run")
@click.argument(
    "profile", type=click.Choice(["quick", "standard", "full"]), default="quick", metavar="[PROFILE]"
)
@MODEL_OPTION
@click.option("--out", type=PATH, metavar="FILE", help="The record file. Default: a new one in this folder.")
@run_options
@click.option("-y", "--yes", is_flag=True, help="Start without asking.")
@click.option("--force", is_flag=True, help="Start in spite of warnings; the record says so.")
@JSON_OPTION
def run_command(
    models: tuple[str, ...],
    out: Path | None,
    limit_first: float,
    limit_full: float,
    no_texts: bool,
    yes: bool,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure a model on this machine.

    PROFILE is quick (10 minutes), standard (an hour) or full (a night); without one it is quick. First
    it says how long it will take. Ctrl+C ends it at any time; what is measured stays, and resume goes
    on.
    """
    from edgemed_benchmarks.arms import RunOptions
    from edgemed_benchmarks.run_command import run_new

    line = _progress()
    run = run_new(
        RunOptions(
            models=models,
            limit_first_seconds=limit_first,
            limit_full_seconds=limit_full,
            keep_texts=not no_texts,
            **options,
        ),
        out,
        _Talk(yes=yes),
        line,
        force=force,
    )
    _end_of_run(run, as_json)


@cli.command("resume")
@click.argument("file", type=PATH)
@MODEL_OPTION
@ITEMS_OPTION
@REFERENCE_OPTION
@JSON_OPTION
def resume_command(
    file: Path,
    models: tuple[str, ...],
    item_sets: tuple[str, ...],
    reference: Path | None,
    as_json: bool,
) -> None:
    """Go on with the run in FILE that was cut or stopped."""
    from edgemed_benchmarks.arms import RunOptions
    from edgemed_benchmarks.run_command import resume

    options = RunOptions(models=models, item_sets=item_sets, reference=reference)
    _end_of_run(resume(file, options, _Talk(yes=True), _progress()), as_json)


@cli.command("verify")
@click.argument("file", type=PATH)
@JSON_OPTION
def verify_command(file: Path, as_json: bool) -> None:
    """Check that no line of FILE is changed, lost or cut.

    Ends with 0 when it is, with 1 when not.
    """
    from edgemed_benchmarks.run_command import verify

    found = verify(file)
    if as_json:
        write_json(found._asdict())
    else:
        write_text(
            f"{found.path}: {'whole' if found.whole else 'DAMAGED'}, {found.samples} questions answered"
        )
        if found.problem:
            write_text(found.problem)
    sys.exit(0 if found.whole else DAMAGED_EXIT_CODE)


@cli.command("score")
@click.argument("file", type=PATH)
@click.option("--out", type=PATH, metavar="FILE", help="Default: beside FILE, ending in .scores.json.")
@JSON_OPTION
def score_command(file: Path, out: Path | None, as_json: bool) -> None:
    """Tell how good and how safe the answers in FILE are."""
    from edgemed_benchmarks.report_command import score_file

    scored = score_file(file, out)
    if as_json:
        write_json(scored.scores)
    else:
        write_text("\n".join(scored.lines))
        say(f"All scores, question by question, are in {scored.path}")


@cli.command("report")
@click.argument("files", type=PATH, nargs=-1, required=True, metavar="FILE...")
@click.option("--out", type=PATH, metavar="FILE.html", help="Write one page that any browser shows.")
@click.option("--csv", "csv_out", type=PATH, metavar="FILE.csv", help="Write all numbers as a table.")
@click.option("--samples-csv", type=PATH, metavar="FILE.csv", help="Write a row for each question.")
@click.option("--wh-per-day", type=float, metavar="WH", help="Energy that there is for answers in a day.")
@JSON_OPTION
def report_command(
    files: tuple[Path, ...],
    out: Path | None,
    csv_out: Path | None,
    samples_csv: Path | None,
    wh_per_day: float | None,
    as_json: bool,
) -> None:
    """Show what FILE says: on the screen, as a page, as tables."""
    from edgemed_benchmarks.report_command import report

    found = report(files, out=out, csv_out=csv_out, samples_csv=samples_csv, wh_per_day=wh_per_day)
    if as_json:
        write_json(found.as_json)
    elif not found.written:
        write_text("\n".join(found.lines))
    for path in found.written:
        say(f"Written: {path}")


@cli.command("compare")
@click.argument("files", type=PATH, nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--since", metavar="DAY", help="Of a folder: who became slower since this day, such as 2026-01-31."
)
@JSON_OPTION
def compare_command(files: tuple[Path, ...], since: str | None, as_json: bool) -> None:
    """Compare models, quantizations and machines.

    FILE is a record or a pack; one folder of them is looked over as a fleet. Says which differences are
    more than chance, and how small a difference would have been seen.
    """
    from edgemed_benchmarks.compare_command import compare_files

    found = compare_files(files, since)
    if as_json:
        write_json(found.as_json)
    else:
        write_text(found.text, end="")


@cli.command("rate")
@click.argument("files", type=PATH, nargs=-1, required=True, metavar="FILE...")
@click.option("--out", type=PATH, metavar="SHEET.html", help="The sheet. Its key file is written beside it.")
@click.option(
    "--questions", type=click.IntRange(1), default=20, show_default=True, metavar="N", help="On the sheet."
)
@click.option("--seed", type=click.IntRange(0), default=0, help="Of the drawing of questions.")
@click.option(
    "--merge",
    "sheets",
    type=PATH,
    multiple=True,
    metavar="SHEET.json",
    help="What a sheet saved, one for each person; FILE is the key file then.",
)
@click.option("--partial", is_flag=True, help="With --merge: also sheets that are not finished.")
@JSON_OPTION
def rate_command(
    files: tuple[Path, ...],
    out: Path | None,
    questions: int,
    seed: int,
    sheets: tuple[Path, ...],
    partial: bool,
    as_json: bool,
) -> None:
    """Make a blinded sheet for clinicians, or merge filled ones.

    The sheet shows the answers in FILE; it is one page that works without a network, and on paper. Which
    model wrote what is in the key file, which is opened when all have rated: rate KEY.json --merge
    SHEET.json
    """
    if sheets:
        if len(files) != 1 or out is not None:
            raise click.UsageError("With --merge there is one FILE, the key file, and no --out.")
        _merge_sheets(files[0], sheets, partial, as_json)
        return
    from edgemed_benchmarks.rate import make_sheet

    if out is None:
        raise click.UsageError("The sheet needs a name: --out SHEET.html.")
    sheet = make_sheet(files, out, questions=questions, seed=seed)
    if as_json:
        write_json(sheet._asdict())
        return
    write_text(f"{sheet.path}: {sheet.questions} questions, {sheet.answers} answers")
    write_text(f"{sheet.key_path}: which model wrote which answer. Keep it closed until all have rated.")


def _merge_sheets(key_path: Path, sheets: tuple[Path, ...], partial: bool, as_json: bool) -> None:
    from edgemed_benchmarks.plain import plain
    from edgemed_benchmarks.rating_merge import merge_sheets, rating_lines

    result = merge_sheets(key_path, sheets, partial=partial)
    if as_json:
        write_json(plain(result))
    else:
        write_text("\n".join(rating_lines(result)))


@cli.command("pack")
@click.argument("files", type=PATH, nargs=-1, required=True, metavar="FILE...")
@click.option("--out", type=PATH, required=True, metavar="FILE", help="The pack.")
@click.option("--keep-names", is_flag=True, help="Keep the models' names as they are.")
@click.option("-y", "--yes", is_flag=True, help="Write it without asking.")
@JSON_OPTION
def pack_command(files: tuple[Path, ...], out: Path, keep_names: bool, yes: bool, as_json: bool) -> None:
    """Make a small anonymous file to hand on.

    It holds the numbers of one or more records, for a stick or a slow line: no answer, and no name of a
    person, machine or place. What is in it is shown first.
    """
    from edgemed_benchmarks.pack import prepare_pack, write_pack

    prepared = prepare_pack(files, keep_names=keep_names)
    for line in prepared.contents:
        say(line)
    if not _Talk(yes=yes).confirm(f"Write these {len(prepared.data):,} bytes?", unless_asked=True):
        raise click.Abort
    path = write_pack(prepared, out)
    if as_json:
        write_json({"path": path, "bytes": len(prepared.data)})
    else:
        write_text(f"{path}: {len(prepared.data):,} bytes")


@cli.command("export")
@click.argument("files", type=PATH, nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--format",
    "form",
    type=click.Choice(["lm-eval", "llama-bench", "csv"]),
    required=True,
    help="The other tool.",
)
@click.option(
    "--out", type=PATH, required=True, metavar="PATH", help="A folder, a file, or names' beginning."
)
@JSON_OPTION
def export_command(files: tuple[Path, ...], form: Any, out: Path, as_json: bool) -> None:
    """Write FILE as other tools write their results."""
    from edgemed_benchmarks.export import export_files

    written = export_files(files, form, out)
    if as_json:
        write_json(written)
        return
    for path in written:
        write_text(str(path))


cli.add_command(suites_group)


@cli.command("reference")
@click.option("--model", metavar="NAME", help="An installed model, or the path of a GGUF file.")
@click.option("--out", type=PATH, metavar="FILE", help="Such as reference_logits.bin.")
@click.option("--pack", type=PATH, metavar="FOLDER", help="A pack, which takes them up.")
@click.option("--texts", type=int, default=40, show_default=True, metavar="N", help="Answers to read.")
@click.option(
    "--answers",
    type=int,
    default=24,
    show_default=True,
    metavar="N",
    help="Answers of each suite to write, for their lengths.",
)
@click.option("--threads", type=int, metavar="N", help="Default: the app's way.")
@JSON_OPTION
def reference_command(
    model: str | None,
    out: Path | None,
    pack: Path | None,
    texts: int,
    answers: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Write what the engineers' model gives, for its pack.

    With it a clinic can see that its own model behaves the same. It goes into the model's pack, and the
    fidelity suite compares with it.
    """
    from edgemed_benchmarks.reference_command import make_reference

    line = _progress()
    made = make_reference(
        model,
        out,
        pack=pack,
        texts=texts,
        answers=answers,
        threads=threads,
        progress=line.count,
    )
    line.clear()
    if as_json:
        write_json(made._asdict())
    else:
        write_text(f"{made.path}: {made.texts} answers, {made.positions} tokens, {made.size_bytes:,} bytes")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and end the process with its exit code."""
    operating_system.raise_on_termination()
    sys.exit(run_command_line(cli, "edgemed-bench", arguments))


def _end_of_run(run: Any, as_json: bool) -> None:
    from edgemed_benchmarks.report_command import end_of_run

    ending = end_of_run(run)
    if as_json:
        write_json(ending.as_json)
    else:
        say("")
        write_text("\n".join(ending.lines))
        say("")
        say(f"The record is in {run.path}. A page of it: edgemed-bench report {run.path} --out report.html")
    sys.exit(ending.exit_code)


class _Talk:
    """Speaks on standard error; asks only where somebody can answer."""

    def __init__(self, *, yes: bool) -> None:
        self._yes = yes

    def say(self, text: str) -> None:
        clear_progress()
        say(text)

    def confirm(self, question: str, *, unless_asked: bool) -> bool:
        clear_progress()
        if self._yes and unless_asked:
            return True
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            return unless_asked
        try:
            return click.confirm(question, default=unless_asked, err=True)
        except click.Abort:
            raise KeyboardInterrupt from None

    def ask(self, question: str) -> str:
        clear_progress()
        try:
            answer: str = click.prompt(question, err=True)
        except click.Abort:
            raise KeyboardInterrupt from None
        return answer


def _progress() -> "ProgressLine":
    from edgemed_benchmarks.run_text import ProgressLine

    line = ProgressLine()
    clear_before_errors(line.clear)
    return line


if __name__ == "__main__":
    main()
