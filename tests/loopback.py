"""For the few tests that need a server: this computer's loopback, and nothing else of the network."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from edgemed.offline import OfflineViolation

_HOSTS = ("127.0.0.1", "::1", "localhost", b"127.0.0.1", b"localhost")
_active: list[bool] = []
_hooked: list[bool] = []


@contextmanager
def loopback_only() -> Iterator[None]:
    """Refuse every address but the loopback's, in this process, until the end of the block."""
    if not _hooked:
        # Python keeps an audit hook until its end.
        sys.addaudithook(_refuse_others)
        _hooked.append(True)
    _active.append(True)
    try:
        yield
    finally:
        _active.pop()


def _refuse_others(event: str, arguments: tuple[object, ...]) -> None:
    if not _active:
        return
    if event in ("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg"):
        address = arguments[1]
        if isinstance(address, tuple) and address[0] not in _HOSTS:
            raise OfflineViolation(f"Something tried to leave this computer: {event} {address}")
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        if arguments[0] not in _HOSTS:
            raise OfflineViolation(f"Something asked for the address of {arguments[0]!r}")
