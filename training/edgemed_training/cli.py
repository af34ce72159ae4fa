"""The command line `edgemed-train`: parse, call one function, print."""

import os
import sys
from pathlib import Path
from typing import Any

import click

from edgemed import __version__
from edgemed.command_line import JSON_OPTION, CommandLine, run_command_line, write_json

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
SET_OPTION = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change one key of the recipe: train.epochs=1.",
)
DATA_OPTION = click.option(
    "--data", type=FOLDER, required=True, metavar="DIR", help="The folder that `prepare` wrote."
)
BASE_OPTION = click.option(
    "--base",
    type=FOLDER,
    required=True,
    metavar="DIR",
    help="The base model: a local folder with config, tokenizer and safetensors weights.",
)


@click.group(cls=CommandLine, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="edgemed-train %(version)s")
def cli() -> None:
    """Fine-tune a base model on medical questions and answers: a LoRA adapter over a 4-bit model.

    Nothing is ever downloaded: models and data are local folders. A RECIPE is a TOML file, or the name of one
    that comes with edgemed, such as edge/llama-3.2-1b.
    """


@cli.command()
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="SOURCE...")
@click.option("--out", type=FOLDER, required=True, metavar="DIR", help="The folder to make.")
@click.option(
    "--split",
    type=click.Choice(["group", "random"]),
    default="group",
    show_default=True,
    help="group: a document or disease is never on both sides. random: as the study did, with leaks.",
)
@click.option("--train", type=click.IntRange(min=1), metavar="N", help="Pairs for training. Default: 1900.")
@click.option(
    "--test", type=click.IntRange(min=1), metavar="N", help="Pairs held out. Default: 100, or 5 % of fewer."
)
@click.option("--seed", type=int, default=42, show_default=True, help="Another seed holds out other groups.")
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="FIELD=COLUMN",
    help="The column of a field: question=Frage.",
)
@click.option("--recipe", metavar="RECIPE", help="Take the columns from a recipe's data.columns.")
@click.option("--name", default="", metavar="TEXT", help="What to call a data set that does not name itself.")
@click.option(
    "--license", "license_", default="", metavar="TEXT", help="Of data that do not carry their own."
)
@click.option("--skip-rule", "skip_rules", multiple=True, metavar="RULE", help="Leave a cleaning rule out.")
@click.option("--drop-null", is_flag=True, help="Leave out rows whose question or answer is null.")
@click.option("--allow-pii", is_flag=True, help="Let pass what looks like data of persons.")
@click.option("--overwrite", is_flag=True, help="Replace a data set that stands there.")
@JSON_OPTION
def prepare(
    sources: tuple[Path, ...],
    out: Path,
    split: Any,
    train: int | None,
    test: int | None,
    seed: int,
    columns: tuple[str, ...],
    recipe: str | None,
    name: str,
    license_: str,
    skip_rules: tuple[str, ...],
    drop_null: bool,
    allow_pii: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Make a data set of all SOURCEs: cleaned, looked through for persons' data, split without leaks."""
    from edgemed_training.dataset_card import leak_sentence
    from edgemed_training.prepare import prepare as make
    from edgemed_training.readers.columns import ReadOptions

    card = make(
        sources,
        out,
        split=split,
        train=train,
        heldout=test,
        seed=seed,
        options=ReadOptions(_columns(recipe, columns), name, license_, drop_null),
        skip_rules=skip_rules,
        allow_pii=allow_pii,
        overwrite=overwrite,
    )
    if as_json:
        return write_json(card)
    click.echo(f"{out}: {card.split.train} pairs for training, {card.split.heldout} held out")
    return click.echo(leak_sentence(card.leaks).replace("**", ""))


@cli.command()
@click.argument("recipe")
@DATA_OPTION
@BASE_OPTION
@SET_OPTION
@JSON_OPTION
def check(recipe: str, data: Path, base: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Count what RECIPE will meet and need, before any weight is loaded."""
    from edgemed_training.estimate import check as count
    from edgemed_training.recipe import load_recipe
    from edgemed_training.terminal_report import lines_of

    found = count(load_recipe(recipe, overrides), data=data, base=base, progress=_tell)
    if as_json:
        return write_json(found)
    return click.echo("\n".join(lines_of(found)))


@cli.command()
@click.argument("recipe")
@DATA_OPTION
@BASE_OPTION
@click.option("--out", type=FOLDER, required=True, metavar="DIR", help="The run's folder.")
@SET_OPTION
@click.option("--allow-leaks", is_flag=True, help="Train although training data may hold the held-out pairs.")
@JSON_OPTION
def run(
    recipe: str,
    data: Path,
    base: Path,
    out: Path,
    overrides: tuple[str, ...],
    allow_leaks: bool,
    as_json: bool,
) -> None:
    """Train an adapter as RECIPE says; given again after a stop, it goes on."""
    from edgemed_training.recipe import load_recipe
    from edgemed_training.train import run as train

    report = train(
        load_recipe(recipe, overrides), data=data, base=base, out=out, allow_leaks=allow_leaks, progress=_tell
    )
    if not _is_first_process():
        return None
    if as_json:
        return write_json(
            {"adapter": str(report.adapter), "resumed_from": report.resumed_from, "card": report.card}
        )
    return click.echo(f"{report.adapter}: final training loss {report.card.final_loss:.4f}")


@cli.command(name="eval")
@click.argument("base", type=FOLDER)
@click.option("--adapter", type=FOLDER, metavar="DIR", help="The adapter that `run` wrote.")
@click.option(
    "--data",
    type=FILE,
    required=True,
    metavar="FILE",
    help="heldout.jsonl; train.jsonl beside it adds a baseline.",
)
@click.option("--out", type=FOLDER, required=True, metavar="DIR", help="A new folder for scores and answers.")
@click.option("--recipe", metavar="RECIPE", help="Default: the one the adapter was trained with.")
@SET_OPTION
@click.option("--items", type=click.IntRange(min=1), metavar="N", help="Answer only N questions.")
@JSON_OPTION
def evaluate_answers(
    base: Path,
    adapter: Path | None,
    data: Path,
    out: Path,
    recipe: str | None,
    overrides: tuple[str, ...],
    items: int | None,
    as_json: bool,
) -> None:
    """Answer held-out questions with the model in BASE and score the answers."""
    from edgemed_training.evaluate import evaluate, recipe_for
    from edgemed_training.terminal_report import score_lines

    found = evaluate(
        base,
        data=data,
        out=out,
        recipe=recipe_for(recipe, adapter, overrides),
        adapter=adapter,
        items=items,
        progress=_tell,
    )
    if as_json:
        return write_json(found)
    return click.echo("\n".join(score_lines(found)))


@cli.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="DIR...")
@click.option("--out", type=FILE, required=True, metavar="FILE.html", help="The page to write.")
@click.option("--plots", type=FOLDER, metavar="DIR", help="Write the charts there too, as SVG and PNG.")
@click.option("--note", default="", metavar="TEXT", help="A sentence to stand on top.")
@click.option(
    "--without-answers", is_flag=True, help="Leave the worst answers out: for data that belong to others."
)
@JSON_OPTION
def report(
    folders: tuple[Path, ...], out: Path, plots: Path | None, note: str, without_answers: bool, as_json: bool
) -> None:
    """Write one HTML page about the runs and evaluations in the DIRs, and print the study's Table 4."""
    from edgemed_training.report import write_report
    from edgemed_training.study_table import study_lines

    done = write_report(folders, out, plots=plots, note=note, with_answers=not without_answers)
    if as_json:
        return write_json({"files": [str(path) for path in done.files], "table_4": done.table_4})
    return click.echo("\n".join([*map(str, done.files), "", *study_lines(done.table_4)]))


@cli.command()
@click.argument("recipe")
@DATA_OPTION
@BASE_OPTION
@click.option("--out", type=FOLDER, required=True, metavar="DIR", help="A folder for all runs and the table.")
@SET_OPTION
@click.option("--allow-leaks", is_flag=True, help="Train although training data may hold the held-out pairs.")
@JSON_OPTION
def sweep(
    recipe: str,
    data: Path,
    base: Path,
    out: Path,
    overrides: tuple[str, ...],
    allow_leaks: bool,
    as_json: bool,
) -> None:
    """Run every combination of RECIPE's [sweep]; given again after a stop, it goes on."""
    from edgemed_training.errors import TrainingError
    from edgemed_training.recipe import load_recipe
    from edgemed_training.sweep import sweep as run_all
    from edgemed_training.sweep import table

    done = run_all(
        load_recipe(recipe, overrides), data=data, base=base, out=out, allow_leaks=allow_leaks, progress=_tell
    )
    if as_json:
        write_json(done)
    else:
        click.echo(table(done))
    if done.failed:
        folders = ", ".join(run.folder for run in done.failed)
        raise TrainingError(
            f"{len(done.failed)} of {len(done.runs)} runs failed: {folders}.",
            hint="Their .log files say why; the same command tries them again.",
        )


@cli.command()
@click.argument("recipe")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="The folder that `prepare` wrote, or JSON Lines with question and answer.",
)
@click.option(
    "--base",
    "base_folder",
    type=FOLDER,
    metavar="DIR",
    help="For a recipe of the chat stage: the base model it is made of.",
)
@click.option("--out", type=FOLDER, required=True, metavar="DIR", help="The run's folder.")
@SET_OPTION
@JSON_OPTION
def base(
    recipe: str, data: Path, base_folder: Path | None, out: Path, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Train a small model from scratch: base/edge_base_8m, then base/edge_chat_8m; again, to go on."""
    from edgemed_training.base_recipe import load_base_recipe
    from edgemed_training.base_stages import train_stage

    found = load_base_recipe(recipe, overrides)
    report = train_stage(found, base=base_folder, data=data, out=out, progress=_tell)
    if as_json:
        return write_json(
            {"model": str(report.model), "resumed_from": report.resumed_from, "card": report.card}
        )
    return click.echo(f"{report.model}: {report.card.parameters} parameters, {report.card.steps} steps")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and end the process with its exit code."""
    sys.exit(run_command_line(cli, "edgemed-train", arguments))


def _columns(recipe: str | None, pairs: tuple[str, ...]) -> dict[str, str]:
    from edgemed_training.recipe import load_recipe

    columns = dict(load_recipe(recipe).data.columns) if recipe else {}
    for pair in pairs:
        field, equals, column = pair.partition("=")
        if not equals:
            raise click.BadParameter(f"{pair!r} is not FIELD=COLUMN.", param_hint="--column")
        columns[field] = column
    return columns


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _tell(sentence: str) -> None:
    if _is_first_process():
        click.echo(sentence, err=True)


if __name__ == "__main__":
    main()
