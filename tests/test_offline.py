"""The network is refused, seen and named; what stays inside the machine is not."""

import asyncio
import contextlib
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator

import pytest

from edgemed.offline import OfflineViolation, SocketGuard, forbid_sockets


@pytest.fixture
def guard() -> Iterator[SocketGuard]:
    """Return a guard of the test's own: the session's stands for all."""
    with forbid_sockets() as guard:
        yield guard


@pytest.mark.parametrize(
    ("attempt", "event"),
    [
        (lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM), "socket.__new__"),
        (lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM), "socket.__new__"),
        (lambda: socket.create_connection(("127.0.0.1", 9)), "socket."),
        (lambda: socket.getaddrinfo("example.org", 443), "socket.getaddrinfo 'example.org'"),
        (lambda: socket.gethostbyname("example.org"), "socket.gethostbyname 'example.org'"),
        (lambda: urllib.request.urlopen("http://example.org"), "urllib.Request 'http://example.org'"),
    ],
)
def test_every_way_to_the_network_is_refused_and_named(
    guard: SocketGuard, attempt: Callable[[], object], event: str
) -> None:
    with pytest.raises(OfflineViolation, match="tried to use the network"):
        attempt()
    assert len(guard.violations) == 1
    assert guard.violations[0].startswith(event)


def test_an_attempt_is_seen_even_when_its_exception_is_swallowed() -> None:
    told: list[str] = []
    # Suppressed as by a careless library.
    with forbid_sockets(told.append) as guard, contextlib.suppress(Exception):
        socket.getaddrinfo("example.org", 443)
    assert guard.violations == told != []


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no local sockets")
def test_a_local_socket_may_exist_but_reach_nothing(guard: SocketGuard) -> None:
    family = getattr(socket, "AF_UNIX")  # noqa: B009 - Windows' types lack it
    with socket.socket(family) as local, pytest.raises(OfflineViolation):
        local.connect("somewhere")
    with socket.socket(family, socket.SOCK_DGRAM) as local, pytest.raises(OfflineViolation):
        local.sendto(b"x", "somewhere")
    assert len(guard.violations) == 2


def test_an_event_loop_and_the_computers_own_name_need_no_network(guard: SocketGuard) -> None:
    asyncio.run(asyncio.sleep(0))
    assert socket.gethostname()
    assert guard.violations == []


# What Python's socket module does on Windows, which has no socket pairs.
WINDOWS_PAIR = """
from _socket import socket
def socketpair():
    listening = socket(AF_INET, SOCK_STREAM)
    try:
        listening.bind((host, 0))
    finally:
        listening.close()
def other():
    socket(AF_INET, SOCK_STREAM)
"""


def windows_socket_module(host: str) -> dict[str, Callable[[], None]]:
    """Return what stands for Windows' `socket` module; the pair binds to `host`."""
    namespace = {
        "__name__": "socket",
        "host": host,
        "AF_INET": socket.AF_INET,
        "SOCK_STREAM": socket.SOCK_STREAM,
    }
    exec(WINDOWS_PAIR, namespace)
    return namespace  # type: ignore[return-value]


def test_windows_way_to_a_local_pair_is_allowed(guard: SocketGuard) -> None:
    windows_socket_module("127.0.0.1")["socketpair"]()
    assert guard.violations == []


def test_a_pair_that_is_not_local_is_refused(guard: SocketGuard) -> None:
    with pytest.raises(OfflineViolation):
        windows_socket_module("0.0.0.0")["socketpair"]()
    with pytest.raises(OfflineViolation):
        windows_socket_module("127.0.0.1")["other"]()
    assert len(guard.violations) == 2


def test_a_stopped_guard_refuses_and_records_nothing() -> None:
    program = """if True:
        import socket
        from edgemed.offline import OfflineViolation, forbid_sockets
        guard, other = forbid_sockets(), forbid_sockets()
        guard.stop()
        guard.stop()
        try:
            socket.socket()
        except OfflineViolation:
            print(len(guard.violations), len(other.violations))
        other.stop()
        socket.socket().close()
        forbid_sockets()  # still stands when the interpreter ends
    """
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, check=True, timeout=30
    )
    assert ended.stdout.split() == [b"0", b"1"]
    assert ended.stderr == b""
