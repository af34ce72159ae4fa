"""The command compare: records and packs side by side, or a whole folder of them."""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edgemed.errors import UsageError
from edgemed_benchmarks.compare import compare
from edgemed_benchmarks.compare_text import comparison_text
from edgemed_benchmarks.compare_values import ArmValues, run_arms
from edgemed_benchmarks.pack_format import read_runs
from edgemed_benchmarks.plain import plain
from edgemed_benchmarks.score import score_run


class Compared(NamedTuple):
    """What is shown of a comparison."""

    text: str
    as_json: Any


def compare_files(files: Sequence[Path], since: str | None) -> Compared:
    """Compare the arms of some files, or look over one folder.

    Args:
        since: for a folder: which machines became slower since this day, as 2026-01-31.

    Raises:
        UsageError: a folder among files, or no date.
        RecordError: a file cannot be used, or the arms cannot be compared.
        MissingExtra: a folder needs DuckDB.
    """
    if len(files) == 1 and files[0].is_dir():
        return _folder(files[0], since)
    if any(path.is_dir() for path in files):
        raise UsageError("A folder is looked over alone.", hint="Give files, or one folder.")
    comparison = compare([arm for path in files for arm in _arms(path)])
    return Compared(comparison_text(comparison), plain(comparison))


def _arms(path: Path) -> list[ArmValues]:
    return [arm for run, scores in read_runs(path) for arm in run_arms(run, scores or score_run(run))]


def _folder(folder: Path, since: str | None) -> Compared:
    from edgemed_benchmarks.fleet import fleet
    from edgemed_benchmarks.fleet_text import fleet_text

    try:
        day = None if since is None else datetime.date.fromisoformat(since)
    except ValueError as error:
        raise UsageError(f"{since!r} is no day.", hint="Write it like 2026-01-31.") from error
    found = fleet(folder, since=day)
    return Compared(fleet_text(found), plain(found))
