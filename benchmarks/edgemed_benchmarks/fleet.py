"""A folder of packs from many machines: which miss the limits, and which became slower.

DuckDB reads the packs in a stream and keeps one short row for each answer, so that a thousand packs need
seconds and little memory. What counts for a verdict is what counts in the report of a single run
(`answer_times`). It never reaches the network.
"""

import contextlib
import datetime
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from edgemed.errors import MissingExtra, StorageError
from edgemed.records import SCHEMA
from edgemed_benchmarks.answer_times import LIMIT_CONFIDENCE, LIMIT_SHARE
from edgemed_benchmarks.distributions import student_t
from edgemed_benchmarks.errors import RecordError
from edgemed_benchmarks.fleet_files import BadFile, fleet_files, split_readable
from edgemed_benchmarks.fleet_queries import ANSWERS, DRIFT, LINE_COLUMNS, LINES, MACHINES, RUNS
from edgemed_benchmarks.stats import EarlyVerdict, Estimate, early_verdict

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

MEMORY_LIMIT_MIB = 512
"""What DuckDB may take; above it, it works on the disk."""
DROP = 0.1
"""A machine that writes at least so much slower than before has drifted."""
MONTH = datetime.timedelta(days=30)
_FIRST_DATE = datetime.date(2026, 1, 1)
"""Before edgemed was there: a clock that was never set."""
_FEWEST_ITEMS = 6


class FleetMachine(NamedTuple):
    """The newest run of one model on one machine."""

    machine_id: str
    cpu_model: str
    model_name: str
    label: str
    model_sha256: str
    file: str
    utc: str
    runs: int
    """Of this model on this machine, all together."""
    samples: int
    invalid: int
    first_words: EarlyVerdict
    full_answer: EarlyVerdict
    decode_rate: float | None
    """Σtokens ÷ Σseconds, tokens/s."""
    verdict: Literal["yes", "no", "undecided"]
    """No if a limit is missed, yes if both are kept, else undecided."""


class Drift(NamedTuple):
    """A machine that writes slower than before with the same model."""

    machine_id: str
    model_name: str
    label: str
    rate_before: float
    """Tokens/s, the median over items."""
    rate_after: float
    ratio: Estimate
    """After ÷ before on the same items, with its 95 % interval."""
    also_changed: list[str]
    """What may explain it: power source, threads, versions."""


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """What a folder of packs says."""

    files: int
    bad_files: list[BadFile]
    duplicates: int
    """Runs that another file holds too."""
    machines: list[FleetMachine]
    """One for each machine and model, those that miss the limits first."""
    since: datetime.date | None
    """Runs from this day on are held against those before; None: no run has a date that can be believed."""
    drop: float
    drifted: list[Drift]
    """The greatest loss first."""
    compared: int
    """Machines and models with runs on both sides of `since`."""
    wrong_clocks: list[str]
    """Files whose date cannot be true: not used for drift."""


def fleet(
    folder: Path,
    *,
    first_words_limit_seconds: float | None = None,
    full_answer_limit_seconds: float | None = None,
    since: datetime.date | None = None,
    drop: float = DROP,
    today: datetime.date | None = None,
) -> Fleet:
    """Read all packs below a folder.

    Args:
        first_words_limit_seconds: None takes the limit that each run was made with.
        full_answer_limit_seconds: as above.
        since: None takes the newest run's day less 30 days.
        drop: least loss of the decode rate that is told, as a share; the interval must lie beyond it.
        today: a run from later has a wrong clock; None is today.

    Raises:
        RecordError: no folder, or nothing in it that can be read.
        MissingExtra: DuckDB is not installed.
        StorageError: memory and disk are too small.
    """
    paths = fleet_files(folder)
    good, bad = split_readable(paths, _SCHEMAS)
    if not good:
        raise RecordError(
            f"None of the {len(bad)} files in {folder} can be read: {bad[0].name} {bad[0].reason}.",
            hint="Copy them again from the machines that wrote them.",
        )
    with _database() as database:
        copies, faulty = _load(database, good)
        latest = (today or datetime.datetime.now(datetime.UTC).date()) + datetime.timedelta(days=1)
        wrong = _wrong_clocks(database, latest)
        since = since or _a_month_before_the_newest(database)
        compared = _compared(database, since) if since else []
        return Fleet(
            files=len(good),
            bad_files=bad + faulty,
            duplicates=copies,
            machines=_machines(database, first_words_limit_seconds, full_answer_limit_seconds),
            since=since,
            drop=drop,
            drifted=sorted(
                (one for one in compared if one.ratio.high is not None and one.ratio.high < 1 - drop),
                key=lambda one: one.ratio.value or 0.0,
            ),
            compared=len(compared),
            wrong_clocks=wrong,
        )


_SCHEMAS = (SCHEMA,)


@contextlib.contextmanager
def _database() -> Iterator["DuckDBPyConnection"]:
    """Open a database of its own, which is gone afterwards."""
    try:
        import duckdb
    except ImportError as error:
        raise MissingExtra(
            "Reading a fleet needs DuckDB, which is not installed here.", hint="pip install 'edgemed[bench]'"
        ) from error
    with tempfile.TemporaryDirectory(prefix="edgemed-fleet-", ignore_cleanup_errors=True) as spill:
        config: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": f"{MEMORY_LIMIT_MIB}MiB",
            "temp_directory": spill,
            "preserve_insertion_order": False,
            # Nothing is fetched: what is not in the installed package is an error.
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
        try:
            with duckdb.connect(config=config) as database:
                yield database
        except duckdb.Error as error:
            raise StorageError(
                f"The packs could not be counted: {str(error).splitlines()[0]}",
                hint="Free memory and disk space, or look over fewer packs at a time.",
            ) from error


def _load(database: "DuckDBPyConnection", paths: Sequence[Path]) -> tuple[int, list[BadFile]]:
    """Fill the tables; return how many runs are copies, and the files with lines that are no records."""
    database.execute(LINES, {"paths": [str(path) for path in paths], "columns": LINE_COLUMNS})
    database.execute(RUNS)
    database.execute(ANSWERS)
    started = _count(database, "SELECT count(*) FROM lines WHERE type = 'run_start'")
    faulty = database.execute(
        "SELECT file, count(*) FROM lines WHERE type IS NULL GROUP BY file ORDER BY file"
    ).fetchall()
    database.execute("DROP TABLE lines")
    return started - _count(database, "SELECT count(*) FROM runs"), [
        BadFile(_name(file), f"has lines that are no records ({lines}); its others are counted")
        for file, lines in faulty
    ]


def _name(file: str) -> str:
    """Return a file's name without its folder and the run's number in it."""
    return Path(file.partition("\x1f")[0]).name


def _count(database: "DuckDBPyConnection", query: str) -> int:
    row = database.execute(query).fetchone()
    return int(row[0]) if row else 0


def _wrong_clocks(database: "DuckDBPyConnection", latest: datetime.date) -> list[str]:
    """Take the dates away that cannot be true; return their files' names."""
    wrong = "day IS NULL OR day < $first OR day > $latest"
    bounds = {"first": _FIRST_DATE, "latest": latest}
    rows = database.execute(f"SELECT DISTINCT file FROM runs WHERE {wrong} ORDER BY file", bounds).fetchall()
    database.execute(f"UPDATE runs SET day = NULL WHERE {wrong}", bounds)
    return list(dict.fromkeys(_name(file) for (file,) in rows))


def _a_month_before_the_newest(database: "DuckDBPyConnection") -> datetime.date | None:
    row = database.execute("SELECT max(day) FROM runs").fetchone()
    return row[0] - MONTH if row and row[0] else None


def _machines(
    database: "DuckDBPyConnection", first_words: float | None, full_answer: float | None
) -> list[FleetMachine]:
    rows = database.execute(MACHINES, {"first_words": first_words, "full_answer": full_answer}).fetchall()
    found = [
        FleetMachine(
            machine_id=machine_id,
            cpu_model=cpu_model,
            model_name=model_name,
            label=label,
            model_sha256=model_sha256,
            file=_name(file),
            utc=utc,
            runs=runs,
            samples=samples,
            invalid=invalid,
            first_words=_verdict(asked, late_first),
            full_answer=_verdict(asked, late_full),
            decode_rate=rate,
            verdict=_both(_verdict(asked, late_first), _verdict(asked, late_full)),
        )
        for (
            (machine_id, cpu_model, model_name, label, model_sha256, file, utc),
            (runs, samples, invalid, asked, late_first, late_full, rate),
        ) in ((row[:7], row[7:]) for row in rows)
    ]
    order = {"no": 0, "undecided": 1, "yes": 2}
    return sorted(found, key=lambda one: (order[one.verdict], one.machine_id, one.model_name, one.label))


def _verdict(samples: int, misses: int) -> EarlyVerdict:
    return early_verdict(samples, misses, share=LIMIT_SHARE, confidence=LIMIT_CONFIDENCE)


def _both(first: EarlyVerdict, second: EarlyVerdict) -> Literal["yes", "no", "undecided"]:
    both = {first.verdict, second.verdict}
    if "no" in both:
        return "no"
    return "yes" if both == {"yes"} else "undecided"


def _compared(database: "DuckDBPyConnection", since: datetime.date) -> list[Drift]:
    return [
        Drift(
            machine_id,
            model_name,
            label,
            before,
            after,
            _ratio(items, mean_log, deviation),
            changed,
        )
        for machine_id, model_name, label, before, after, items, mean_log, deviation, changed in (
            database.execute(DRIFT, {"since": since}).fetchall()
        )
    ]


def _ratio(items: int, mean_log: float, deviation: float | None) -> Estimate:
    """Return the geometric mean of the items' ratios with Student's interval."""
    if items < _FEWEST_ITEMS or deviation is None:
        return Estimate(math.exp(mean_log), None, None, items, f"the interval needs {_FEWEST_ITEMS} items")
    half = student_t(0.025, items - 1) * deviation / math.sqrt(items)
    return Estimate(math.exp(mean_log), math.exp(mean_log - half), math.exp(mean_log + half), items)
