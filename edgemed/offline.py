"""The promise "never opens a socket", enforced: Python's audit hook refuses every use of the network.

Used by all tests, by the doctor's proof and by the engine's child during it. The hook sees what Python code
does; a C library that called the system by itself would not be seen.
"""

import socket
import sys
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

_NETWORK_EVENTS = ("socket.", "urllib.Request", "http.client.", "ftplib.", "smtplib.", "poplib.", "imaplib.")
# Reads this computer's own name; `platform` does so on Windows.
_HARMLESS_EVENTS = ("socket.gethostname",)
_LOCAL_HOSTS = ("127.0.0.1", "::1")


class OfflineViolation(RuntimeError):
    """Something tried to use the network: a fault of the program, not of its user.

    No OSError: code that shrugs off a missing network must not hide it.
    """


class SocketGuard:
    """Refuses the network from its creation by `forbid_sockets` until `stop`. Also a context manager."""

    def __init__(self, on_violation: Callable[[str], None] | None = None) -> None:
        self.violations: list[str] = []
        """What was tried, also when the code that tried it swallowed the exception."""
        self._on_violation = on_violation

    def stop(self) -> None:
        """Allow the network again, as far as no other guard stands. May be called twice."""
        if self in _guards:
            _guards.remove(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _note(self, violation: str) -> None:
        self.violations.append(violation)
        if self._on_violation:
            self._on_violation(violation)


_guards: list[SocketGuard] = []


def forbid_sockets(on_violation: Callable[[str], None] | None = None) -> SocketGuard:
    """Raise OfflineViolation at every use of the network in this process, and record it.

    A local pair of sockets, by which an event loop wakes itself, is allowed.

    Args:
        on_violation: told what was tried, before the exception is raised.
    """
    guard = SocketGuard(on_violation)
    if not _hooks:
        # Python keeps an audit hook until its end, so there is one, and guards come and go.
        sys.addaudithook(_refuse_network)
        _hooks.append(True)
    _guards.append(guard)
    return guard


_hooks: list[bool] = []


def _refuse_network(
    event: str,
    arguments: tuple[object, ...],
    # Bound here: the module's names are gone when the interpreter ends, and the hook is still called.
    guards: list[SocketGuard] = _guards,
    network_events: tuple[str, ...] = _NETWORK_EVENTS,
) -> None:
    if not guards or not event.startswith(network_events) or _is_local(event, arguments):
        return
    # Not the socket object itself: to keep it would keep it open.
    shown = ", ".join(repr(argument) for argument in arguments if not isinstance(argument, socket.SocketType))
    violation = f"{event} {shown}".strip()
    for guard in list(guards):
        guard._note(violation)
    raise OfflineViolation(f"Something tried to use the network: {violation}")


def _is_local(event: str, arguments: tuple[object, ...]) -> bool:
    if event in _HARMLESS_EVENTS:
        return True
    if event == "socket.__new__" and arguments[1] == getattr(socket, "AF_UNIX", None):
        return True  # nothing is reached until it connects or binds
    if event == "socket.__new__" or (event in ("socket.bind", "socket.connect") and _is_loopback(arguments)):
        return _inside_socketpair(sys._getframe(2))
    return False


def _is_loopback(arguments: tuple[object, ...]) -> bool:
    address = arguments[1]
    return isinstance(address, tuple) and address[0] in _LOCAL_HOSTS


def _inside_socketpair(frame: FrameType | None) -> bool:
    """Whether `socket.socketpair` asks: Windows has none, and Python joins two loopback sockets instead."""
    while frame is not None and frame.f_globals.get("__name__") == "socket":
        if frame.f_code.co_name in ("socketpair", "_fallback_socketpair"):
            return True
        frame = frame.f_back
    return False
