"""The command line `edgemed-convert`: parse, call one function, print."""

import click

from edgemed import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="edgemed-convert %(version)s")
def cli() -> None:
    """Will turn a fine-tuned model into a checked GGUF pack; nothing is in it yet."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and end the process with its exit code."""
    cli.main(args=arguments, prog_name="edgemed-convert")


if __name__ == "__main__":
    main()
