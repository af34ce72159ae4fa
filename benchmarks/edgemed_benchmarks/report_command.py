"""The commands score and report, and what is shown at the end of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from edgemed.errors import StorageError
from edgemed.operating_system import write_atomically
from edgemed_benchmarks.errors import INVALID_ENVIRONMENT, UNDECIDED, VERDICT_NO
from edgemed_benchmarks.journal import Run, read_run
from edgemed_benchmarks.pack_format import read_runs
from edgemed_benchmarks.plain import plain
from edgemed_benchmarks.score import score_run
from edgemed_benchmarks.score_format import Scores
from edgemed_benchmarks.summary import RunSummary, summarise
from edgemed_benchmarks.terminal_report import summary_lines

SCORES_SUFFIX = ".scores.json"
_UNFIT_SHARE = 0.5
"""Of all samples: with more invalid ones the run says nothing of a quiet machine."""


class Ending(NamedTuple):
    """What is shown when a run is over."""

    lines: list[str]
    as_json: dict[str, Any]
    exit_code: int


class Scored(NamedTuple):
    """The scores of a record file."""

    scores: Scores
    lines: list[str]
    path: Path


class Report(NamedTuple):
    """What the command report shows and has written."""

    lines: list[str]
    as_json: list[dict[str, Any]]
    written: list[Path]


def end_of_run(run: Run) -> Ending:
    """Return what is shown when a run is over, and the exit code of its verdict.

    Raises:
        RecordError: two item sets of the run hold the same item id.
    """
    summary = summarise(run, score_run(run))
    return Ending(summary_lines(summary), facts_of(summary), exit_code_of(summary))


def exit_code_of(summary: RunSummary) -> int:
    """Return 0, or the code of the worst verdict; 4 where most samples are invalid."""
    counts = summary.validity
    if counts.samples and counts.invalid / counts.samples > _UNFIT_SHARE:
        return INVALID_ENVIRONMENT
    if "latency" not in summary.run.start.suites:
        return 0
    verdicts = {arm.verdict for arm in summary.arms}
    if "no" in verdicts:
        return VERDICT_NO
    return UNDECIDED if "undecided" in verdicts else 0


def facts_of(summary: RunSummary) -> dict[str, Any]:
    """Return the summary for machines: verdicts and all measures; no samples."""
    return {
        "record": str(summary.run.path),
        "run_id": summary.run.start.run_id,
        "profile": summary.run.start.profile,
        "finished": summary.finished,
        "predicted_seconds": summary.predicted_seconds,
        "actual_seconds": summary.actual_seconds,
        "validity": plain(summary.validity),
        "notes": summary.notes,
        "exit_code": exit_code_of(summary),
        "arms": [
            {
                "label": arm.arm.label,
                "model_name": arm.arm.model_name,
                "model_sha256": arm.arm.model_sha256,
                "verdict": arm.verdict,
                "headline": arm.headline,
                "limits": plain(arm.limits),
                "measures": plain([*arm.speed, *(arm.energy.measures if arm.energy else ()), *arm.endurance]),
                "fidelity": plain(arm.fidelity),
                "scores": arm.scores,
            }
            for arm in summary.arms
        ],
    }


def score_file(path: Path, out: Path | None) -> Scored:
    """Score a record file and write the scores beside it, or to `out`.

    Raises:
        RecordError: the record cannot be used.
        StorageError: the scores cannot be written.
    """
    run = read_run(path)
    scores = score_run(run)
    target = out or path.with_name(path.name.removesuffix(".jsonl") + SCORES_SUFFIX)
    _write(target, msgspec.json.format(msgspec.json.encode(scores), indent=1) + b"\n")
    return Scored(scores, _score_lines(scores), target)


def _score_lines(scores: Scores) -> list[str]:
    """Return a table that names arm, suite, set and metric of each score."""
    several = len(scores.arms) > 1
    rows = []
    for score in scores.scores:
        parts = (scores.arms[score.arm] if several else "", score.suite, score.item_set, score.metric)
        value = "–" if score.value is None else f"{score.value:.3f}"
        known = score.low is not None and score.high is not None
        interval = f"{score.low:.3f} to {score.high:.3f}" if known else ""
        rows.append((" ".join(filter(None, parts)), value, interval, str(score.n)))
    width = max((len(name) for name, *_rest in rows), default=0)
    head = ("score", "value", "95 % interval", "n")
    return [f"{name:<{width}} {value:>8} {interval:>16} {n:>5}" for name, value, interval, n in (head, *rows)]


def report(
    files: Sequence[Path],
    *,
    out: Path | None,
    csv_out: Path | None,
    samples_csv: Path | None,
    wh_per_day: float | None,
) -> Report:
    """Summarise record files and packs; write a page and tables where they are wished for.

    Raises:
        RecordError: a file cannot be used.
        StorageError: a file cannot be written.
    """
    summaries = []
    for path in files:
        for run, scores in read_runs(path):
            summaries.append(summarise(run, scores or score_run(run), wh_per_day=wh_per_day))
    written = []
    if out is not None:
        from edgemed_benchmarks.report_html import write_page

        write_page(out, summaries)
        written.append(out)
    if csv_out is not None:
        from edgemed_benchmarks.csv_report import summary_csv

        _write(csv_out, summary_csv(summaries).encode())
        written.append(csv_out)
    if samples_csv is not None:
        from edgemed_benchmarks import csv_report

        _write(samples_csv, csv_report.samples_csv(summaries).encode())
        written.append(samples_csv)
    lines: list[str] = []
    for summary in summaries:
        lines += [*([f"== {summary.name}"] if len(summaries) > 1 else []), *summary_lines(summary), ""]
    return Report(lines[:-1], [facts_of(summary) for summary in summaries], written)


def _write(path: Path, data: bytes) -> None:
    try:
        write_atomically(path, data)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror}.", hint="Check the folder and the disk."
        ) from error
