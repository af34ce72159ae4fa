"""The installer's command line: parse, call one function, print. Here alone errors are caught."""

import argparse
import io
import sys
from pathlib import Path
from typing import NoReturn

from installation import Choices, install, look_at_kit
from operating_system import data_folder, on_termination
from places import Places
from removal import check_installed, roll_back, uninstall
from talk import Talk

from edgemed.errors import EdgemedError, StorageError, Terminated, UsageError
from edgemed.kit_list import plain
from edgemed.kit_stick import check_whole

_INTERRUPTED_EXIT_CODE = 130
_LONGEST_MESSAGE = 2000
_KIT = Path(__file__).resolve().parent.parent
_AS_BEFORE = "What was installed before is still in use; start again as often as you like."


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}.", hint="sh install.sh --help shows what there is.")


def _arguments(words: list[str] | None) -> argparse.Namespace:
    parser = _Parser(
        prog="install",
        description="Install edgemed from this stick: no network, no administrator, beside an older version.",
    )
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="check every file of the kit, and install nothing")
    what.add_argument("--rollback", action="store_true", help="use the version before the last one again")
    what.add_argument("--uninstall", action="store_true", help="remove the program and its models")
    add("--installed", action="store_true", help="with --check: check what is installed, not the kit")
    add("--also-data", action="store_true", help="with --uninstall: remove conversations and settings, too")
    add("--key", metavar="FILE|BASE64", help="the public key that must have signed the kit")
    add("--allow-unsigned", action="store_true", help="for trials: take a kit that nobody signed")
    add("--yes", action="store_true", help="answer all questions with yes")
    add("--kit", type=Path, default=_KIT, metavar="DIR", help="the kit, if not the one of this installer")
    arguments = parser.parse_args(words)
    if arguments.installed and not arguments.check:
        parser.error("--installed goes with --check")
    if arguments.also_data and not arguments.uninstall:
        parser.error("--also-data goes with --uninstall")
    return arguments


def _run(words: list[str] | None) -> str:
    arguments = _arguments(words)
    choices = Choices(arguments.kit, arguments.key, arguments.allow_unsigned, arguments.yes)
    if arguments.rollback:
        return roll_back()
    if arguments.uninstall:
        return uninstall(also_data=arguments.also_data, yes=arguments.yes)
    if arguments.installed:
        return check_installed()
    return _check(choices) if arguments.check else install(choices)


def _check(choices: Choices) -> str:
    """Check the kit alone."""
    talk = Talk(2)
    talk.step("Looking at the kit")
    kit = look_at_kit(choices, _known_places(), talk)
    talk.step("Checking every file of the kit")
    check_whole(kit, talk.progress)
    talk.close()
    return f"The kit is whole: {len(kit.sums):,} files, every byte is the listed one."


def _known_places() -> Places | None:
    # A kit can also be checked by one who could not install it.
    try:
        return Places(data_folder())
    except StorageError:
        return None


def main(words: list[str] | None = None) -> int:
    """Do what the command line says; return the exit code (see `edgemed/errors.py`)."""
    for stream in (sys.stdout, sys.stderr):
        # A letter that the terminal cannot show must not end an installation.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    on_termination(_terminate)
    try:
        print(_run(words))
    except EdgemedError as error:
        return _fail(error.message, error.hint, error.exit_code)
    except KeyboardInterrupt:
        return _fail("Stopped.", _AS_BEFORE, _INTERRUPTED_EXIT_CODE)
    except Terminated as termination:
        return _fail("Ended by the system.", _AS_BEFORE, termination.exit_code)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return _fail(
            f"The system refused: {error.strerror or error}{where}.", _AS_BEFORE, EdgemedError.exit_code
        )
    return 0


def _terminate(exit_code: int) -> NoReturn:
    raise Terminated(exit_code)


def _fail(message: str, hint: str, exit_code: int) -> int:
    # Names of files on a foreign stick may hold anything.
    print(f"\nerror: {plain(message, _LONGEST_MESSAGE)}", file=sys.stderr)
    if hint:
        print(f"hint: {plain(hint, _LONGEST_MESSAGE)}", file=sys.stderr)
    return exit_code
