"""A terminal of our own: the app runs in a pseudo terminal, and the screen it draws can be read."""

import contextlib
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyte

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_SECONDS = 20.0
ANSWERED = ("Done.", "is cut")
"""The demonstration model chooses by chance, and sometimes writes until its longest length."""
APP = [sys.executable, "-m", "edgemed.cli"]
SLOW_APP = [sys.executable, "-m", "tests.slow_app"]
KEYS = {
    "enter": b"\r",
    "escape": b"\x1b",
    "tab": b"\t",
    "up": b"\x1b[A",
    "down": b"\x1b[B",
    "right": b"\x1b[C",
    "f1": b"\x1bOP",
    "f2": b"\x1bOQ",
    "f5": b"\x1b[15~",
    "f6": b"\x1b[17~",
    "f7": b"\x1b[18~",
    "f9": b"\x1b[20~",
    "f10": b"\x1b[21~",
}


class Terminal:
    """One run of a program in a terminal."""

    def __init__(
        self, command: list[str], home: Path, *, columns: int = 80, lines: int = 24, **environment: str | None
    ) -> None:
        import pty

        home.parent.mkdir(parents=True, exist_ok=True)
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self._lock = threading.Lock()
        self.received_bytes = 0
        self._master, slave = pty.openpty()
        self._set_size(columns, lines)
        variables: dict[str, str | None] = {
            **os.environ,
            "EDGEMED_HOME": str(home),
            "TERM": "xterm-256color",
            "PYTHONPATH": str(ROOT),
            **environment,
        }
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=home.parent,
            env={name: value for name, value in variables.items() if value is not None},
            # The controlling terminal: it is what makes a closed window a SIGHUP.
            preexec_fn=_own_terminal,
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def text(self) -> str:
        """What stands on the screen."""
        with self._lock:
            return "\n".join(line.rstrip() for line in self._screen.display)

    def send(self, data: bytes) -> None:
        """Type bytes."""
        while data:
            written = os.write(self._master, data[:4096])
            data = data[written:]

    def press(self, *keys: str) -> None:
        """Press keys, one after another."""
        for key in keys:
            self.send(KEYS.get(key) or key.encode())
            # As people do: an Enter right behind a letter would be part of a paste.
            time.sleep(0.02)

    def wait_for(self, *texts: str, seconds: float = PATIENCE_SECONDS) -> str:
        """Wait until one of the texts stands on the screen; return the screen."""
        until = time.monotonic() + seconds
        while True:
            shown = self.text
            if any(text in " ".join(shown.split()) for text in texts):
                return shown
            if time.monotonic() > until:
                raise AssertionError(f"{' or '.join(map(repr, texts))} did not come:\n{shown}")
            time.sleep(0.02)

    def wait_for_end(self, seconds: float = PATIENCE_SECONDS) -> int:
        """Wait for the program's end; return its exit code."""
        return self.process.wait(seconds)

    def resize(self, columns: int, lines: int) -> None:
        """Make the window larger or smaller."""
        with self._lock:
            self._screen.resize(lines, columns)
        self._set_size(columns, lines)
        self.process.send_signal(signal.SIGWINCH)

    def close_window(self) -> None:
        """Take the terminal away."""
        os.close(self._master)
        self._master = -1

    def end(self) -> None:
        """Kill what is left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self._master >= 0:
            with contextlib.suppress(OSError):
                os.close(self._master)

    def _set_size(self, columns: int, lines: int) -> None:
        import fcntl
        import termios

        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def _read(self) -> None:
        held = b""
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:
                return
            if not data:
                return
            with self._lock:
                self.received_bytes += len(data)
                whole, held = _whole(held + data)
                self._stream.feed(_known(whole))


def _whole(data: bytes) -> tuple[bytes, bytes]:
    """Hold back an escape sequence that the read cut in two."""
    begin = data.rfind(b"\x1b")
    if begin < 0 or re.match(rb"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|[^\[\]])", data[begin:]):
        return data, b""
    return data[:begin], data[begin:]


def _known(data: bytes) -> bytes:
    # Kitty's and modern modes' private sequences, which this emulator would print.
    for sequence in (
        b"\x1b[>25u",
        b"\x1b[<u",
        b"\x1b[?2026$p",
        b"\x1b[?2048$p",
        b"\x1b[?2026h",
        b"\x1b[?2026l",
    ):
        data = data.replace(sequence, b"")
    return data


def _own_terminal() -> None:
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@contextlib.contextmanager
def terminal(command: list[str], home: Path, **options: Any) -> Iterator[Terminal]:
    """Run a program in a terminal; nothing of it is left behind."""
    running = Terminal(command, home, **options)
    try:
        yield running
    finally:
        running.end()
