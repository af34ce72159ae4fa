"""The record file of a run: written so that a power cut costs at most the line in flight, and read.

Every line is on the disk before the next thing is measured. The reader refuses what it cannot trust and names
the line: another schema version, two runs in one file, a line that was changed, lost or put in. Only a last
line that was cut in the middle is passed over, for that is what a power cut leaves.
"""

import contextlib
import errno
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

import msgspec

from edgemed import operating_system
from edgemed.errors import StorageError
from edgemed.records import (
    FIRST_CHAIN,
    SCHEMA,
    Arm,
    Line,
    Load,
    Machine,
    Record,
    RunEnd,
    RunEvent,
    RunStart,
    Sample,
    Telemetry,
    chain_of,
)
from edgemed_benchmarks.errors import RecordError

LONGEST_LINE_BYTES = 16 * 2**20
"""An answer of a million tokens would fit; a model file given by mistake is refused before it is read."""
TORN_SUFFIX = ".torn"
_START = b'{"type":"run_start"'

R = TypeVar("R", bound=Line)
_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Record)


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One run as its file holds it."""

    path: Path
    records: list[Record]
    """All, in order; `start` is the first."""
    start: RunStart
    machines: list[Machine]
    """One at the start and one after each resume."""
    loads: list[Load]
    samples: list[Sample]
    telemetry: list[Telemetry]
    events: list[RunEvent]
    end: RunEnd | None
    """None: the run was cut, or is still going on."""
    whole_bytes: int
    """Size of the lines that are whole."""
    torn_bytes: int = 0
    """Behind them: a line that was cut in the middle."""
    last_chain: str
    """What the next line must carry."""

    @property
    def arms(self) -> list[Arm]:
        """What `Sample.arm` and `Load.arm` count in."""
        return self.start.arms

    def arm_of(self, record: Sample | Load) -> Arm:
        """Return the arm that a sample or load belongs to."""
        return self.start.arms[record.arm]


def read_run(path: Path) -> Run:
    """Read and check a record file.

    Raises:
        RecordError: it cannot be read, is of another schema version, holds two runs, or was changed; the
            message names the line.
    """
    records: list[Record] = []
    chain, whole_bytes = FIRST_CHAIN, 0
    torn = b""
    for number, line, is_last in _lines(path):
        if is_last and _is_torn(line):
            torn = line
            break
        record = _decode(path, number, line.removesuffix(b"\n"), chain)
        _check_place(path, number, record, records)
        records.append(record)
        chain = chain_of(line.removesuffix(b"\n"))
        whole_bytes += len(line)
    if not records:
        raise _no_start(path, torn)
    return _run(path, records, whole_bytes=whole_bytes, torn_bytes=len(torn), last_chain=chain)


def _run(path: Path, records: list[Record], *, whole_bytes: int, torn_bytes: int, last_chain: str) -> Run:
    def of(kind: type[R]) -> list[R]:
        return [record for record in records if isinstance(record, kind)]

    start, last = records[0], records[-1]
    assert isinstance(start, RunStart)
    return Run(
        path=path,
        records=records,
        start=start,
        machines=of(Machine),
        loads=of(Load),
        samples=of(Sample),
        telemetry=of(Telemetry),
        events=of(RunEvent),
        end=last if isinstance(last, RunEnd) else None,
        whole_bytes=whole_bytes,
        torn_bytes=torn_bytes,
        last_chain=last_chain,
    )


class Journal:
    """An open record file that lines are appended to; a context manager."""

    def __init__(
        self, path: Path, *, seq: int, chain: str, at_ns: int, size_bytes: int, clock_ns: Callable[[], int]
    ) -> None:
        """Use `create` or `reopen`."""
        self.path = path
        self._seq, self._chain, self._size_bytes = seq, chain, size_bytes
        self._clock_ns = clock_ns
        self._zero_ns = clock_ns() - at_ns
        try:
            # Appending, so that a file that somebody emptied meanwhile is not filled with zeros.
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise _refused(path, error) from error

    @classmethod
    def create(cls, path: Path, *, clock_ns: Callable[[], int] = time.monotonic_ns) -> "Journal":
        """Begin a new file.

        Args:
            clock_ns: never goes back; goes on while the machine sleeps where the system has such a clock.

        Raises:
            RecordError: the file is there already, and not empty.
            StorageError: it cannot be written.
        """
        try:
            with path.open("ab") as file:
                is_empty = not file.tell()
            operating_system.fsync_folder(path.absolute().parent)
        except OSError as error:
            raise _refused(path, error) from error
        if not is_empty:
            raise RecordError(
                f"{path} is there already.",
                hint=f"Go on with it: edgemed-bench resume {path}; or choose another --out.",
            )
        return cls(path, seq=0, chain=FIRST_CHAIN, at_ns=0, size_bytes=0, clock_ns=clock_ns)

    @classmethod
    def reopen(cls, run: Run, *, clock_ns: Callable[[], int] = time.monotonic_ns) -> "Journal":
        """Go on with a file that `read_run` and `repair` have seen; its time goes on from its last line.

        Raises:
            StorageError: it cannot be written.
        """
        return cls(
            run.path,
            seq=run.records[-1].seq + 1,
            chain=run.last_chain,
            # Telemetry is written after what it saw.
            at_ns=max(record.at_ns for record in run.records),
            size_bytes=run.whole_bytes,
            clock_ns=clock_ns,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def now_ns(self) -> int:
        """Return what the next line would carry as `at_ns`."""
        return max(0, self._clock_ns() - self._zero_ns)

    def append(
        self, record_type: type[R], /, *, at_ns: int | None = None, durable: bool = True, **fields: Any
    ) -> R:
        """Write one line and wait until it is on the disk; return it.

        Args:
            record_type: the record's class; `fields` are all its fields but those of `Line`.
            at_ns: when it was, if not now: telemetry is written after the answer that it saw.
            durable: False leaves the waiting to the next line: for telemetry.

        Raises:
            StorageError: the disk is full or gone; what stood in the file stays whole.
        """
        record = record_type(
            seq=self._seq,
            chain=self._chain,
            at_ns=self.now_ns() if at_ns is None else at_ns,
            utc=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **fields,
        )
        line = _encoder.encode(record)
        self._write(line + b"\n", durable=durable)
        self._seq += 1
        self._chain = chain_of(line)
        return record

    def close(self) -> None:
        """Close the file. May be called twice."""
        self._file.close()

    def _write(self, data: bytes, *, durable: bool) -> None:
        try:
            written = 0
            while written < len(data):
                written += self._file.write(data[written:])
            if durable:
                operating_system.fsync_file(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self._size_bytes)
            raise _refused(self.path, error) from error
        self._size_bytes += len(data)


def repair(run: Run) -> str:
    """Move a torn last line into a file beside; return a sentence about it, or nothing if there is none.

    Raises:
        StorageError: the file cannot be changed.
    """
    if not run.torn_bytes:
        return ""
    beside = run.path.with_name(run.path.name + TORN_SUFFIX)
    try:
        with run.path.open("r+b") as file:
            file.seek(run.whole_bytes)
            torn = file.read()
            operating_system.write_durably(beside, torn)
            file.truncate(run.whole_bytes)
            operating_system.fsync_file(file.fileno())
    except OSError as error:
        raise _refused(run.path, error) from error
    return (
        f"The last line of {run.path.name} was cut in the middle ({len(torn)} bytes); "
        f"they are in {beside.name} now, and that one question is asked again."
    )


def _lines(path: Path) -> Iterator[tuple[int, bytes, bool]]:
    """Yield number, bytes with newline, and whether it is the last, of each line."""
    try:
        with path.open("rb") as file:
            line, number = file.readline(LONGEST_LINE_BYTES), 1
            while line:
                if len(line) == LONGEST_LINE_BYTES:
                    raise _damaged(path, number, "is longer than any record")
                following = file.readline(LONGEST_LINE_BYTES)
                yield number, line, not following
                line, number = following, number + 1
    except OSError as error:
        raise RecordError(
            f"{path} cannot be read: {error.strerror}.", hint="Check the file's name."
        ) from error


def _is_torn(line: bytes) -> bool:
    if not line.endswith(b"\n"):
        return True
    try:
        # A power cut can also leave zeros where a part of the last line should be.
        msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return True
    return False


def _decode(path: Path, number: int, line: bytes, chain: str) -> Record:
    if number == 1:
        _check_schema(path, line)
    try:
        record = _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _damaged(path, number, f"is no valid record ({error})") from error
    if record.seq != number - 1:
        raise _damaged(
            path, number, f"has the number {record.seq}, not {number - 1}: lines are missing or moved"
        )
    if record.chain != chain:
        raise _damaged(path, number, f"does not fit line {number - 1}: one of them was changed")
    return record


def _check_schema(path: Path, line: bytes) -> None:
    class First(msgspec.Struct):
        type: str = ""
        schema: str = ""

    try:
        first = msgspec.json.decode(line, type=First)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise _no_start(path, line) from None
    if first.type != "run_start":
        raise _no_start(path, line)
    if first.schema != SCHEMA:
        raise RecordError(
            f"{path} is of schema {first.schema[:40]!r}; this edgemed reads {SCHEMA!r}.",
            hint="Read it with the edgemed version that wrote it, or a newer one.",
        )


def _check_place(path: Path, number: int, record: Record, before: list[Record]) -> None:
    if isinstance(record, RunStart):
        if before:
            raise _damaged(path, number, "begins another run: a file holds one")
        return
    start = before[0]
    assert isinstance(start, RunStart)
    if isinstance(record, Sample | Load) and record.arm >= len(start.arms):
        raise _damaged(path, number, f"belongs to arm {record.arm}, and the run has {len(start.arms)}")


def _damaged(path: Path, number: int, what: str) -> RecordError:
    return RecordError(
        f"{path}, line {number}: the line {what}.",
        hint="Copy the file again from the machine that wrote it; what was edited by hand is not used.",
    )


def _no_start(path: Path, line: bytes) -> RecordError:
    if not line or line.startswith(_START):
        return RecordError(
            f"{path} was cut before its first line was whole: nothing is in it yet.",
            hint="Delete it and run again.",
        )
    return RecordError(
        f"{path}, line 1: not the start of a benchmark run.", hint="Give a file that edgemed-bench run wrote."
    )


def _refused(path: Path, error: OSError) -> StorageError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(
            f"The disk is full; {path} is whole up to the last question.",
            hint=f"Make room, then: edgemed-bench resume {path}",
        )
    return StorageError(f"{path} cannot be written: {error.strerror}.", hint="Check the folder and the disk.")
