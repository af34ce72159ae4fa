"""What a pack is: the records of some runs without their texts, in one small file, and how it is read.

A pack is gzip over JSON Lines. Its lines are those of `edgemed.records`, run after run, so that whatever
reads records can read packs. Four things differ:

- a line of the second, third … run of a pack carries `run`: 1, 2 …; without it, it is of the first run;
- `chain` is all zeros: gzip's own check sum tells a damaged file, and 16 random digits a line need room;
- `prompt_sha256` and `text_sha256` have their first 16 digits, then zeros, for the same reason;
- lines of the type `scores` hold what written answers got, for their texts stay behind.

`pack` writes it; nothing in it names a person, a machine or a place.
"""

import gzip
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

import msgspec

from edgemed.records import (
    FIRST_CHAIN,
    SCHEMA,
    Line,
    Load,
    Machine,
    Record,
    RunEnd,
    RunEvent,
    RunStart,
    Sample,
    Telemetry,
)
from edgemed_benchmarks.errors import RecordError
from edgemed_benchmarks.journal import LONGEST_LINE_BYTES, Run, read_run
from edgemed_benchmarks.score_format import Scores

SUFFIX = ".edgebench.json.gz"
LARGEST_PACK_BYTES = 100_000
"""What a slow line sends in some minutes: 100 kB at 10 kbit/s take 80 seconds."""
LARGEST_UNPACKED_BYTES = 64 * 2**20
"""A small file that unpacks without end would fill the memory."""
PACKED_EVENT = "packed"
"""Kind of the event that says how a run was thinned."""

_HINT = "Copy it again from the machine that wrote it."
R = TypeVar("R", bound=Line)


class ScoresLine(msgspec.Struct, frozen=True, kw_only=True, tag="scores", tag_field="type"):
    """What one run's answers got, as `edgemed-bench score` counted it before the texts were left out."""

    scores: Scores


class Pack(NamedTuple):
    """A pack as it was read."""

    path: Path
    runs: list[Run]
    """At least one; `Run.whole_bytes` is the unpacked size, the same for all."""
    scores: list[Scores | None]
    """One a run; None: it had nothing to score."""


class _Place(msgspec.Struct):
    type: str = ""
    schema: str = ""
    run: Annotated[int, msgspec.Meta(ge=0)] = 0


_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Record | ScoresLine] = msgspec.json.Decoder(Record | ScoresLine)
_place_decoder = msgspec.json.Decoder(_Place)


def is_pack(path: Path) -> bool:
    """Whether a file's name says that it is a pack."""
    return path.name.endswith(SUFFIX)


def encode_pack(runs: Iterable[tuple[Iterable[Record], Scores | None]]) -> bytes:
    """Return a pack's bytes: the same records always give the same bytes."""
    lines: list[bytes] = []
    for number, (records, scores) in enumerate(runs):
        scored = [] if scores is None else [ScoresLine(scores=scores)]
        lines += [_encoded(line, number) for line in (*records, *scored)]
    return gzip.compress(b"".join(line + b"\n" for line in lines), compresslevel=9, mtime=0)


def read_runs(path: Path) -> list[tuple[Run, Scores | None]]:
    """Read a record file or a pack: the runs in it, and the scores that a pack has of them.

    Raises:
        RecordError: as `read_run` and `read_pack` say.
    """
    if not is_pack(path):
        return [(read_run(path), None)]
    pack = read_pack(path)
    return list(zip(pack.runs, pack.scores, strict=True))


def read_pack(path: Path) -> Pack:
    """Read and check a pack.

    Raises:
        RecordError: it cannot be read, was cut, is no pack or of another schema version; the line is named.
    """
    data = _unpacked(path)
    found: list[list[Record]] = []
    scores: list[Scores | None] = []
    for number, line in enumerate(data.splitlines(), 1):
        place, record = _decode(path, number, line)
        if isinstance(record, RunStart):
            if place.run != len(found):
                raise _damaged(path, number, f"begins run {place.run}, and {len(found)} came before")
            found.append([])
            scores.append(None)
        if place.run != len(found) - 1:
            raise _damaged(path, number, f"is of run {place.run}, and stands in run {len(found) - 1}")
        if isinstance(record, ScoresLine):
            scores[-1] = record.scores
            continue
        _check_arm(path, number, record, found[-1])
        found[-1].append(record)
    return Pack(path, [_run(path, records, len(data)) for records in found], scores)


def _encoded(line: Record | ScoresLine, number: int) -> bytes:
    return _encoder.encode(msgspec.to_builtins(line) | {"run": number} if number else line)


def _unpacked(path: Path) -> bytes:
    try:
        data = b"".join(_pieces(path))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise RecordError(f"{path} is damaged, cut or no pack.", hint=_HINT) from error
    except OSError as error:
        raise RecordError(
            f"{path} cannot be read: {error.strerror}.", hint="Check the file's name."
        ) from error
    if not data:
        raise RecordError(f"{path} is empty.", hint=_HINT)
    if not data.endswith(b"\n"):
        raise RecordError(f"{path} was cut in the middle of a line.", hint=_HINT)
    return data


def _pieces(path: Path) -> Iterator[bytes]:
    taken = 0
    with gzip.open(path, "rb") as file:
        while piece := file.read(2**20):
            taken += len(piece)
            if taken > LARGEST_UNPACKED_BYTES:
                raise RecordError(
                    f"{path} unpacks to more than {LARGEST_UNPACKED_BYTES >> 20} MiB: no pack has so much.",
                    hint=_HINT,
                )
            yield piece


def _decode(path: Path, number: int, line: bytes) -> tuple[_Place, Record | ScoresLine]:
    try:
        if len(line) > LONGEST_LINE_BYTES:
            raise _damaged(path, number, "is longer than any record")
        place = _place_decoder.decode(line)
        if number == 1 and place.type != "run_start":
            raise _damaged(path, number, "does not start a benchmark run")
        if place.type == "run_start" and place.schema != SCHEMA:
            raise RecordError(
                f"{path} is of schema {place.schema[:40]!r}; this edgemed reads {SCHEMA!r}.",
                hint="Read it with the edgemed version that wrote it, or a newer one.",
            )
        return place, _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _damaged(path, number, f"is no valid record ({error})") from error


def _check_arm(path: Path, number: int, record: Record, before: list[Record]) -> None:
    if isinstance(record, Sample | Load):
        start = before[0]
        assert isinstance(start, RunStart)
        if record.arm >= len(start.arms):
            raise _damaged(path, number, f"belongs to arm {record.arm}, and the run has {len(start.arms)}")


def _run(path: Path, records: list[Record], whole_bytes: int) -> Run:
    def of(kind: type[R]) -> list[R]:
        return [record for record in records if isinstance(record, kind)]

    start, ends = records[0], of(RunEnd)
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
        end=ends[-1] if ends else None,
        whole_bytes=whole_bytes,
        last_chain=FIRST_CHAIN,
    )


def _damaged(path: Path, number: int, what: str) -> RecordError:
    return RecordError(f"{path}, line {number}: the line {what}.", hint=_HINT)
