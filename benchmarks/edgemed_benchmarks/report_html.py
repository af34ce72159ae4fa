"""The report as one HTML page: no script, nothing from outside; the verdict first, then tables, then plots.

Everything that was read from a file is escaped. Answers are not shown: a report may be handed on.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

from edgemed_benchmarks import verdict_text
from edgemed_benchmarks.long_run import GRADES
from edgemed_benchmarks.measures import Measure, interval_text, value_text
from edgemed_benchmarks.report_file import write_report
from edgemed_benchmarks.report_plots import Plot, pareto, plots
from edgemed_benchmarks.report_style import style
from edgemed_benchmarks.report_tables import (
    SCORED_SUITES,
    WORDS,
    Cells,
    condition_table,
    difference_line,
    facts,
    measure_table,
    overview_rows,
    score_table,
    used_suites,
)
from edgemed_benchmarks.summary import ArmSummary, RunSummary

LARGEST_BYTES = 150_000
"""Of a page that holds one run."""
_BEFORE_UNIT = re.compile(r"(?<=[0-9]) (?=(?:%|s|ms|GB|MB|Wh|J|W|nats|cores|tokens/s)(?![\w/]))")
# Control characters, and those that turn the direction of writing: no label may reorder the page.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_NOT_CLINICAL = (
    "Fast answers need not be right ones, and no number here says that an answer is safe: that takes a "
    "clinician. Not a medical device."
)


def write_page(path: Path, summaries: Sequence[RunSummary]) -> None:
    """Write the page into a file.

    Raises:
        StorageError: the file cannot be written.
    """
    write_report(path, page(summaries))


def page(summaries: Sequence[RunSummary]) -> str:
    """Return the whole page.

    Args:
        summaries: one for each record file, in the order in which they are shown.
    """
    several = len(summaries) > 1
    title = "What these machines and models do" if several else "What this machine and this model do"
    front = pareto(summaries)
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>edgemed: benchmark report</title><style>{style()}</style></head><body>",
        f'<h1>{title}</h1><p class="soft">Benchmark report of edgemed. {_NOT_CLINICAL}</p>',
    ]
    if several:
        parts.append("<h2>All runs</h2>")
        parts.append(_table("", overview_rows(summaries)))
        parts += _figures([front] if front else [])
    for summary in summaries:
        parts += _run(summary, None if several else front, several=several, density=1 / len(summaries))
    parts.append(f"<h3>Words</h3>{_list(WORDS)}")
    return _UNSEEN.sub("\ufffd", "".join([*parts, "</body></html>\n"]))


def _run(summary: RunSummary, front: Plot | None, *, several: bool, density: float) -> Iterator[str]:
    if several:
        yield f"<h2>{_text(summary.name)}</h2>"
    for arm in summary.arms:
        yield _verdict(arm, named=len(summary.arms) > 1)
    counts = summary.validity
    yield "<p>" + _text(
        verdict_text.validity_sentence(counts.samples, counts.suspect, counts.invalid, counts.reasons)
    )
    yield "</p>"
    for note in summary.notes:
        yield f"<p>{_text(note)}</p>"
    yield _list(facts(summary))
    yield from _tables(summary)
    found = plots(summary, density=density)
    yield from _figures([*([front] if front else []), *found])


def _verdict(arm: ArmSummary, *, named: bool) -> str:
    label = f"{arm.arm.label}: " if named else ""
    details = "".join(f"<p>{_text(text)}</p>" for text in arm.details if arm.limits[0].samples)
    sentence = f"<p>{_text(verdict_text.fidelity_sentence(arm.fidelity))}</p>" if arm.fidelity else ""
    return (
        f'<section class="verdict {arm.verdict}"><p class="first">{_text(label + arm.headline)}</p>'
        f"{details}{sentence}</section>"
    )


def _tables(summary: RunSummary) -> Iterator[str]:
    arms = summary.arms
    if "latency" in used_suites(summary):
        yield _table("Speed and memory", measure_table(arms, [arm.speed for arm in arms]))
        yield _table("Speed by condition", condition_table(arms))
    for suite, title in SCORED_SUITES.items():
        yield _table(title, score_table(arms, suite))
    if any(arm.scores for arm in arms):
        yield f'<p class="soft">{_text(difference_line(arms))}</p>'
    if any(arm.energy for arm in arms) or summary.answers_per_charge.estimate.value is not None:
        yield _table("Energy", _energy(summary))
        for arm in arms:
            if arm.energy:
                yield (
                    f'<p class="soft">{_text(arm.arm.label)}: grade {arm.energy.grade}, '
                    f"{_text(GRADES.get(arm.energy.grade, ''))} ({_text(arm.energy.source)}).</p>"
                )
    elif "energy" in summary.run.start.suites:
        yield '<h3>Energy</h3><p class="soft">Not known: this machine has no source that could be read.</p>'
    if any(arm.endurance for arm in arms):
        yield _table("Endurance", measure_table(arms, [arm.endurance for arm in arms]))


def _energy(summary: RunSummary) -> Iterator[Cells]:
    arms = [arm for arm in summary.arms if arm.energy]
    yield from measure_table(arms, [arm.energy.measures for arm in arms if arm.energy])
    charge = summary.answers_per_charge
    if charge.estimate.value is not None:
        yield _charge(charge)


def _charge(charge: Measure) -> Cells:
    shown = (value_text(charge.estimate.value, charge.unit), interval_text(charge.estimate, charge.unit))
    return Cells("row", [(f"{charge.title}, whole run", ""), shown, (str(charge.estimate.samples), "")])


def _table(title: str, rows: Iterable[Cells]) -> str:
    head, *body = list(rows) or [Cells("head", [])]
    if not body:
        return ""
    heading = f"<h3>{_text(title)}</h3>" if title else ""
    cells = "".join(f"<th>{_text(text)}</th>" for text, _small in head.cells)
    columns = len(head.cells)
    rows_text = "".join(_row(row, columns) for row in body)
    return (
        f'{heading}<table class="columns{columns}"><thead><tr>{cells}</tr></thead>'
        f"<tbody>{rows_text}</tbody></table>"
    )


def _row(row: Cells, columns: int) -> str:
    (first, small), *others = row.cells
    if row.kind == "group":
        return f'<tr class="head"><th colspan="{columns}">{_text(first)}{_small(small)}</th></tr>'
    tag = '<td class="name">' if row.kind == "indented" else "<td>"
    cells = "".join(f"<td>{_text(text)}{_small(below)}</td>" for text, below in others)
    return f"<tr>{tag}{_text(first)}{_small(small)}</td>{cells}</tr>"


def _text(text: str) -> str:
    """Escape a text, and keep numbers and their units in one line."""
    return _BEFORE_UNIT.sub("\u00a0", escape(text))


def _small(text: str) -> str:
    return f"<small>{_text(text)}</small>" if text else ""


def _list(entries: Mapping[str, str]) -> str:
    rows = "".join(f"<dt>{_text(name)}</dt><dd>{_text(text)}</dd>" for name, text in entries.items())
    return f"<dl>{rows}</dl>"


def _figures(found: Sequence[Plot]) -> Iterator[str]:
    if found:
        yield '<div class="plots">'
        for plot in found:
            below = f"<p>{_text(plot.explanation)}</p>" if plot.explanation else ""
            yield f"<figure><figcaption>{_text(plot.caption)}</figcaption>{plot.svg}{below}</figure>"
        yield "</div>"
