"""Refuse every use of the network in this process. Used by the tests, the doctor and the engine's child.

A Python audit hook sees what Python code does with sockets. C code that opened one by itself would not be
seen; llama.cpp, as built for edgemed, has no such code.
"""

import sys
from typing import Any

_EVENTS = ("socket.", "urllib.", "http.", "ftplib.", "smtplib.")
_LOCAL_FAMILY = 1
"""AF_UNIX; a pair of such sockets is a pipe inside this computer."""


class OfflineViolation(RuntimeError):
    """Something tried to use the network."""


class SocketGuard:
    """Refuses and notes each attempt while it is on. Python cannot remove an audit hook, only silence it."""

    def __init__(self) -> None:
        """Begin at once."""
        self.violations: list[str] = []
        self.is_on = True
        sys.addaudithook(self._audit)

    def stop(self) -> None:
        """Refuse nothing any more."""
        self.is_on = False

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_on or not event.startswith(_EVENTS):
            return
        if event == "socket.__new__" and len(arguments) > 1 and arguments[1] == _LOCAL_FAMILY:
            return
        self.violations.append(event)
        raise OfflineViolation(f"edgemed never uses the network, but this was tried: {event}")


def forbid_sockets() -> SocketGuard:
    """Refuse sockets from now on; return the guard, which knows what was tried."""
    return SocketGuard()
