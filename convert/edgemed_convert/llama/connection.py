"""The pipe to the llama.cpp process: starts it, waits for its replies, says in words how it died."""

import contextlib
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import msgspec

from edgemed import errors as edgemed_errors
from edgemed import operating_system
from edgemed.errors import EdgemedError
from edgemed_convert import errors as convert_errors
from edgemed_convert.errors import LlamaCppError
from edgemed_convert.llama.messages import (
    Failure,
    Finished,
    Generated,
    Loaded,
    Progress,
    Rendered,
    Reply,
    Request,
    Tokenized,
    read_frame,
    write_frame,
)

OnProgress = Callable[[int, int, str], None]
"""Called with done, total and what is being done."""

_LAST_REPLIES = Finished | Loaded | Tokenized | Rendered | Generated
_WAIT_SLICE_SECONDS = 0.2
_REPLIES_AHEAD = 8
_CLOSE_SECONDS = 2.0
_LAST_WORDS_BYTES = 4096


class ProcessLost(LlamaCppError):
    """The llama.cpp process died, or was ended because it did not answer."""


class _Died(Exception):
    """The process ended without an answer."""


class Connection:
    """A llama.cpp process, started when it is first asked, and again after it died."""

    def __init__(self) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Reply)
        self._process: subprocess.Popen[bytes] | None = None
        self._replies: queue.Queue[bytes | None] = queue.Queue()
        self._closed = threading.Event()
        self._errors: IO[bytes] | None = None
        self.subject = "llama.cpp"
        """What the process works on, for the sentence that tells of its death."""

    @property
    def process_id(self) -> int | None:
        """The process's id, while there is one."""
        return None if self._process is None else self._process.pid

    def close(self) -> None:
        """End the process. May be called twice."""
        process, self._process = self._process, None
        self._closed.set()
        if process is not None:
            # The process ends by itself when its standard input closes.
            _close(process.stdin)
            _end(process)
            # Not before: another thread may hold its lock in a read that only the process's end ends.
            _close(process.stdout)
        errors, self._errors = self._errors, None
        if errors is not None:
            errors.close()

    def ask(
        self, request: Request, limit_seconds: float, on_progress: OnProgress | None = None
    ) -> Iterator[Reply]:
        """Send a request; yield its replies up to the one that ends it.

        Raises what the other side reports, and ProcessLost for its death or a silence beyond the limit.
        """
        finished = False
        try:
            self._send(request)
            while not finished:
                reply = self._receive(limit_seconds)
                if isinstance(reply, Failure):
                    finished = True
                    raise _planned_error(reply)
                finished = isinstance(reply, Finished | Loaded | Tokenized | Rendered | Generated)
                if isinstance(reply, Progress):
                    if on_progress is not None and reply.total:
                        on_progress(reply.done, reply.total, reply.what)
                else:
                    yield reply
        except _Died:
            finished = True
            raise self._after_death() from None
        finally:
            if not finished:
                # The caller left in the middle: what is still computed is not wanted.
                self.close()

    def _send(self, request: Request) -> None:
        if self._process is None:
            self._start()
        assert self._process is not None and self._process.stdin is not None
        try:
            write_frame(self._process.stdin, self._encoder.encode(request))
        except OSError:
            raise _Died from None

    def _receive(self, limit_seconds: float) -> Reply:
        # In slices: Windows runs no signal handler while a wait is under way, and Ctrl+C must end it.
        until = time.monotonic() + limit_seconds
        while True:
            try:
                document = self._replies.get(timeout=_WAIT_SLICE_SECONDS)
                break
            except queue.Empty:
                if time.monotonic() < until:
                    continue
            self.close()
            raise ProcessLost(
                f"llama.cpp did not answer within {limit_seconds:,.0f} s while it worked on {self.subject}.",
                hint="Free the machine of other work and try again, or export the file again.",
            )
        if document is None:
            raise _Died
        try:
            reply: Reply = self._decoder.decode(document)
            return reply
        except msgspec.DecodeError:
            raise _Died from None

    def _start(self) -> None:
        # Few: a process that computes faster than the tool reads must wait.
        self._replies = queue.Queue(_REPLIES_AHEAD)
        self._closed = threading.Event()
        # A file, not a pipe: nobody reads while llama.cpp computes.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        command = [sys.executable, "-P", "-m", "edgemed_convert.llama.child"]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=_environment(),
            )
        except OSError as error:
            self.close()
            raise LlamaCppError(
                f"The llama.cpp process cannot be started: {error.strerror}.", hint="Close other programs."
            ) from error
        threading.Thread(
            target=_forward, args=(self._process.stdout, self._replies, self._closed), daemon=True
        ).start()

    def _after_death(self) -> ProcessLost:
        process, errors = self._process, self._errors
        explanation, last_words = "it ended", ""
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_CLOSE_SECONDS)
            explanation = operating_system.describe_exit(process.returncode)
        if errors is not None:
            last_words = _last_words(errors)
        self.close()
        return ProcessLost(
            f"The llama.cpp process died while it worked on {self.subject}: {explanation}"
            f"{f' ({last_words})' if last_words else ''}.",
            hint="Check the file with: edgemed-convert inspect",
        )

    def no_answer(self) -> LlamaCppError:
        """End the process, whose reply was not what was asked for; return the error to raise."""
        self.close()
        return LlamaCppError(f"The llama.cpp process gave no answer about {self.subject}.")


def _environment() -> dict[str, str]:
    """Let the process find both packages wherever this one did."""
    folders = [str(Path(str(module.__file__)).parents[1]) for module in (operating_system, convert_errors)]
    before = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*folders, *([before] if before else [])])}


def _forward(stream: IO[bytes], replies: "queue.Queue[bytes | None]", closed: threading.Event) -> None:
    """Read replies in a thread of their own: no portable call waits for a pipe with a time limit."""
    document: bytes | None = b""
    while document is not None and not closed.is_set():
        try:
            document = read_frame(stream)
        except (OSError, ValueError):  # closed under our hands
            document = None
        while not closed.is_set():
            try:
                replies.put(document, timeout=_WAIT_SLICE_SECONDS)
                break
            except queue.Full:
                continue


def _close(stream: IO[bytes] | None) -> None:
    if stream is not None:
        with contextlib.suppress(OSError):
            stream.close()


def _end(process: "subprocess.Popen[bytes]") -> None:
    try:
        process.wait(_CLOSE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _last_words(errors: IO[bytes]) -> str:
    """Return the last line that the process or llama.cpp printed, such as a failed assertion."""
    size = errors.seek(0, os.SEEK_END)
    errors.seek(max(0, size - _LAST_WORDS_BYTES))
    lines = [line.strip() for line in errors.read().decode("utf-8", "replace").splitlines()]
    last = next((line for line in reversed(lines) if line), "")
    # "/path/of/the/build/file.cpp:123: GGML_ASSERT(…) failed": the path helps nobody.
    head, colon, rest = last.replace("\\", "/").partition(": ")
    return f"{head.rsplit('/', 1)[-1]}{colon}{rest}"[:300].rstrip(".")


def _planned_error(failure: Failure) -> EdgemedError:
    for module in (convert_errors, edgemed_errors):
        kind = getattr(module, failure.kind, None)
        if isinstance(kind, type) and issubclass(kind, EdgemedError):
            return kind(failure.message, hint=failure.hint)
    return LlamaCppError(failure.message, hint=failure.hint)
