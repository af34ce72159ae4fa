"""What a run has done so far, in `run.json` beside its files: after a kill, whole stages are not done again.

A stage is known by an identity: a SHA-256 over everything that its output depends on. Its outputs are whole
if they have the size and the time of change that they had when it ended. Called by `run.py`.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from edgemed import __version__
from edgemed.errors import StorageError, UsageError
from edgemed.operating_system import write_atomically
from edgemed_convert.output import storage_error

RECORD_NAME = "run.json"


class FileState(msgspec.Struct, frozen=True):
    """A file as it was seen; the same size and time of change stand for the same bytes."""

    path: str
    """Of an input the whole path, of an output the one from the run's folder."""
    size_bytes: int
    changed_ns: int


class StageRecord(msgspec.Struct, frozen=True):
    """A stage that was begun, and what it wrote if it ended."""

    identity: str
    outputs: list[FileState] = []
    is_done: bool = False
    warnings: list[str] = []


class RunRecord(msgspec.Struct, forbid_unknown_fields=True):
    """All stages of a run by name."""

    schema_version: Literal[1] = 1
    edgemed_version: str = __version__
    stages: dict[str, StageRecord] = {}


def identity_of(*parts: object, files: Sequence[Path] = ()) -> str:
    """Return the SHA-256 over options and the states of input files, and over this version of edgemed."""
    states = [_state(path, path.resolve()) for path in files]
    return hashlib.sha256(msgspec.json.encode([__version__, parts, states])).hexdigest()


class Recorder:
    """Reads and writes the record of one output folder."""

    def __init__(self, folder: Path) -> None:
        """Read the record, or begin one.

        Raises:
            UsageError: a file of the record's name is something else.
            StorageError: it cannot be read.
        """
        self._folder = folder
        self._path = folder / RECORD_NAME
        self._record = _read(self._path)

    def is_done(self, stage: str, identity: str) -> bool:
        """Whether a stage ended with this identity and its outputs are as it left them."""
        found = self._record.stages.get(stage)
        return (
            found is not None
            and found.is_done
            and found.identity == identity
            and all(self._still_holds(state) for state in found.outputs)
        )

    def was_begun(self, stage: str, identity: str) -> bool:
        """Whether a run with this identity worked at the stage: its output, if there, is ours to replace."""
        found = self._record.stages.get(stage)
        return found is not None and found.identity == identity

    def knows(self, stage: str) -> bool:
        """Whether a run in this folder ever worked at the stage."""
        return stage in self._record.stages

    def warnings(self, stage: str) -> list[str]:
        """Return what was said when the stage ended."""
        found = self._record.stages.get(stage)
        return found.warnings if found else []

    def begin(self, stage: str, identity: str) -> None:
        """Record that a stage begins, before anything of it gets its name."""
        self._write(stage, StageRecord(identity))

    def end(self, stage: str, identity: str, outputs: Sequence[Path], warnings: Sequence[str] = ()) -> None:
        """Record that a stage ended, after its outputs have their names."""
        states = [_state(path, path.relative_to(self._folder)) for path in outputs]
        self._write(stage, StageRecord(identity, states, True, list(warnings)))

    def _still_holds(self, state: FileState) -> bool:
        path = self._folder / state.path
        try:
            return _state(path, Path(state.path)) == state
        except OSError:
            return False

    def _write(self, stage: str, record: StageRecord) -> None:
        self._record.stages[stage] = record
        self._save()

    def _save(self) -> None:
        self._record.edgemed_version = __version__
        data = msgspec.json.format(msgspec.json.encode(self._record), indent=2) + b"\n"
        try:
            write_atomically(self._path, data)
        except OSError as error:
            raise storage_error(self._path, error) from error


def _state(path: Path, name: Path) -> FileState:
    status = path.stat()
    return FileState(name.as_posix(), status.st_size, status.st_mtime_ns)


def _read(path: Path) -> RunRecord:
    try:
        return msgspec.json.decode(path.read_bytes(), type=RunRecord)
    except FileNotFoundError:
        return RunRecord()
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}.", hint="Check the disk.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} is no record of a run of this version.",
            hint="Name another folder for the output, or remove that file: then everything is done anew.",
        ) from error
