"""The command line `edgemed-train`: parse, call one function, print."""

import click

from edgemed import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="edgemed-train %(version)s")
def cli() -> None:
    """Will fine-tune a base model on medical questions and answers; nothing is in it yet."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and end the process with its exit code."""
    cli.main(args=arguments, prog_name="edgemed-train")


if __name__ == "__main__":
    main()
