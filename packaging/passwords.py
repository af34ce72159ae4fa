"""Ask for a password on the terminal. Called by the scripts that open or make keys."""

import getpass
import sys
import warnings

from edgemed.errors import UsageError


def ask_password(question: str, *, hint: str) -> str:
    """Return what is typed without being shown; where there is no terminal, a line of standard input.

    Args:
        hint: what to do where nobody can be asked.

    Raises:
        UsageError: there is no terminal and standard input is at its end, or Ctrl+D was the answer.
    """
    with warnings.catch_warnings():
        # This warning comes before anything is read or written: it says that there is no terminal.
        warnings.simplefilter("error", getpass.GetPassWarning)
        try:
            return getpass.getpass(question)
        except EOFError as error:
            raise UsageError("No password was given.", hint=hint) from error
        except getpass.GetPassWarning as warning:
            # Standard input is None where it was closed.
            line = sys.stdin.readline() if sys.stdin else ""
            if not line:
                raise UsageError(
                    "The password cannot be asked for: there is no terminal.", hint=hint
                ) from warning
            return line.removesuffix("\n")
