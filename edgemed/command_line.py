"""What the four command lines share: how each ends with an exit code, and how it writes. No command is here.

Standard output is for data, standard error for people. A planned error becomes `error:` and `hint:`.
"""

import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import click

from edgemed import operating_system
from edgemed.errors import EdgemedError, Terminated

BROKEN_PIPE_EXIT_CODE = 141
INTERRUPTED_EXIT_CODE = 130

JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")


class CommandLine(click.Group):
    """A group of commands that ends quietly when the reader of its output is gone."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # Here, for `main` of click would end it with 1.
            _end_without_reader()


class OrderedCommandLine(CommandLine):
    """Lists its commands in the order of the work."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order in which the commands were written down."""
        return list(self.commands)


def run_command_line(
    group: click.Group,
    name: str,
    arguments: list[str] | None,
    *,
    storage_hint: str = "Check the path and the disk.",
) -> int:
    """Run one command, say in a sentence what went wrong, and return the exit code.

    Args:
        name: of the program.
        arguments: those of the process if None.
        storage_hint: what to do when the system refuses a file in a place that no module foresaw.
    """
    operating_system.utf8_standard_streams()
    _clear_functions.clear()
    try:
        group.main(args=arguments, prog_name=name, standalone_mode=False)
    except SystemExit as exit_request:
        return exit_request.code if isinstance(exit_request.code, int) else 0
    except click.exceptions.Exit as exit_request:
        return exit_request.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        return _refused(error.format_message(), _usage_hint(error, name), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return _ended("Stopped.", INTERRUPTED_EXIT_CODE)
    except Terminated as termination:
        return _ended("Ended by the system.", termination.exit_code)
    except EdgemedError as error:
        return _refused(error.message, error.hint, error.exit_code)
    except OSError as error:
        # Disk full or unplugged: still one sentence.
        where = f" ({error.filename})" if error.filename else ""
        sentence = f"The system refused: {error.strerror or error}{where}."
        return _refused(sentence, storage_hint, EdgemedError.exit_code)
    return 0


def say(text: str) -> None:
    """Write to standard error, for people, without what a terminal would obey."""
    from edgemed.terminal_text import clean

    click.echo(clean(text), err=True)


def write_text(text: str, *, end: str = "\n") -> None:
    """Write to standard output, where data goes, without what a terminal would obey."""
    from edgemed.terminal_text import clean

    click.echo(clean(text) + end, nl=False)


def write_json(value: Any) -> None:
    """Write a line of JSON to standard output; what JSON has no form for, such as a path, becomes text."""
    import msgspec

    click.echo(msgspec.json.encode(value, enc_hook=str).decode())


# A line that shows progress.


_clear_functions: list[Callable[[], None]] = []
"""Of the progress lines of this process, which an error must not be written behind."""


def clear_before_errors(clear: Callable[[], None]) -> None:
    """Call `clear` of a progress line before an error is written, and in `clear_progress`."""
    _clear_functions.append(clear)


def clear_progress() -> None:
    """Make room for what is written next."""
    for clear in _clear_functions:
        clear()


def percent_line(label: str) -> Callable[[int, int], None] | None:
    """Return what shows bytes done, of bytes in all, as a percentage on a terminal; None elsewhere."""
    if not sys.stderr.isatty():
        return None
    line = _PercentLine(label)
    clear_before_errors(line.clear)
    return line


class _PercentLine:
    def __init__(self, label: str) -> None:
        self._label = label
        self._shown_percent = -1
        self._is_open = False

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        percent = 100 * done_bytes // max(1, total_bytes)
        if percent != self._shown_percent:
            self._shown_percent = percent
            click.echo(f"\r{self._label}: {percent} %", nl=False, err=True)
            self._is_open = True
        if done_bytes >= total_bytes:
            self.clear()

    def clear(self) -> None:
        """End the line; how far it came stays to be read."""
        if self._is_open:
            click.echo(err=True)
            self._is_open = False


# The end.


def _refused(message: str, hint: str, exit_code: int) -> int:
    clear_progress()
    say(f"error: {message}")
    if hint:
        say(f"hint: {hint}")
    return exit_code


def _ended(message: str, exit_code: int) -> int:
    clear_progress()
    say(message)
    return exit_code


def _usage_hint(error: click.ClickException, name: str) -> str:
    """Name the help of the command that was meant, as far as that is known."""
    if isinstance(error, click.UsageError) and error.ctx is not None and error.ctx.info_name:
        name = error.ctx.command_path
    return f"{name} --help shows what there is."


def _end_without_reader() -> NoReturn:
    # Python must not try to flush it once more at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(BROKEN_PIPE_EXIT_CODE)
