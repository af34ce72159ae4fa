"""The commands `edgemed-bench suites …`: parse, call one function, print."""

from pathlib import Path
from typing import Any

import click

from edgemed.command_line import JSON_OPTION, say, write_json, write_text
from edgemed_benchmarks.cli_options import PATH


@click.group("suites")
def suites_group() -> None:
    """See the sets of questions, and take in your own."""


@suites_group.command("list")
@JSON_OPTION
def suites_list(as_json: bool) -> None:
    """List the sets of questions on this computer."""
    from edgemed_benchmarks.suites_command import list_sets

    sets = list_sets()
    if as_json:
        write_json([each._asdict() for each in sets])
        return
    for each in sets:
        if each.problem:
            say(f"DAMAGED  {each.problem}")
            continue
        write_text(
            f"{each.name:<20} {each.suite:<8} {each.items:>6} questions  {each.license}  {each.source}"
        )


@suites_group.command("import")
@click.argument("file", type=PATH)
@click.option("--name", required=True, metavar="NAME", help="What the set will be called.")
@click.option("--format", "file_format", metavar="FORMAT", help="Default: seen from the columns.")
@click.option(
    "--suite",
    type=click.Choice(["latency", "quality", "safety"]),
    default="quality",
    show_default=True,
    help="Which suite asks it.",
)
@click.option("--source", default="", metavar="TEXT", help="Where the questions are from.")
@click.option("--license", "licence", default="", metavar="TEXT", help="Under which licence.")
@click.option(
    "--training", type=PATH, metavar="FILE", help="Training data: say how many questions are in it, too."
)
@click.option("--replace", is_flag=True, help="Replace a set of this name.")
@JSON_OPTION
def suites_import(file: Path, as_json: bool, **options: Any) -> None:
    """Take in a set of your own: MedQA, MedMCQA, MMLU, PubMedQA, K-QA, JSON Lines or CSV.

    Sets under a licence of others are never part of edgemed.
    """
    from edgemed_benchmarks.suites_command import import_set

    found = import_set(file, **options)
    if as_json:
        write_json(found.as_json)
    else:
        write_text("\n".join(found.lines))
