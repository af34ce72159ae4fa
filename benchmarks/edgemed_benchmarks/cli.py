"""The command line `edgemed-bench`: parse, call one function, print."""

import click

from edgemed import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="edgemed-bench %(version)s")
def cli() -> None:
    """Will measure the speed and the answer quality of models; nothing is in it yet."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and end the process with its exit code."""
    cli.main(args=arguments, prog_name="edgemed-bench")


if __name__ == "__main__":
    main()
