"""Options that several commands of `edgemed-bench` share, and the many of `run`. Called by its `cli*.py`."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., None])

PATH = click.Path(path_type=Path)
MODEL_OPTION = click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME",
    help="An installed model, or the path of a GGUF file; several are compared. Default: the one in use.",
)
ITEMS_OPTION = click.option(
    "--items",
    "item_sets",
    multiple=True,
    metavar="NAME",
    help="A set of questions (suites list) or its file, in place of edgemed's own of its suite.",
)
REFERENCE_OPTION = click.option(
    "--reference", type=PATH, metavar="FILE", help="Reference logits. Default: those in the model's pack."
)


def run_options(command: Command) -> Command:
    """Add the options for what `run` measures, and how."""
    options = (
        click.option(
            "--suite",
            "suites",
            multiple=True,
            type=click.Choice(["latency", "quality", "safety", "fidelity", "energy", "endurance"]),
            help="Measure only this; may be given several times. Default: all.",
        ),
        click.option(
            "--minutes",
            type=float,
            metavar="N",
            help="Take as much as fits into this time. Default: 10, 60 or 480.",
        ),
        ITEMS_OPTION,
        REFERENCE_OPTION,
        click.option(
            "--limit-first",
            type=float,
            default=8.0,
            show_default=True,
            metavar="SECONDS",
            help="In which the first words must come.",
        ),
        click.option(
            "--limit-full",
            type=float,
            default=60.0,
            show_default=True,
            metavar="SECONDS",
            help="In which the whole answer must be there.",
        ),
        click.option(
            "--threads", type=int, metavar="N", help="Default: the app's way, which follows the free cores."
        ),
        click.option(
            "--context-length", type=int, metavar="TOKENS", help="Default: as in the app, up to 4096."
        ),
        click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, help="Of the questions' order."),
        click.option(
            "--battery-wh",
            "battery_watt_hours",
            type=float,
            metavar="WH",
            help="What the battery holds when full, from its label, where the system does not tell.",
        ),
        click.option("--meter", is_flag=True, help="Ask for the readings of a meter in the socket (Wh)."),
        click.option(
            "--no-texts", is_flag=True, help="Keep no answers in the file: they cannot be scored later."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command
