"""A run's summary as lines for a terminal of 80 columns."""

import textwrap
import unicodedata
from collections.abc import Iterator, Sequence

from edgemed_benchmarks import verdict_text
from edgemed_benchmarks.report_tables import (
    SCORED_SUITES,
    Cells,
    difference_line,
    facts,
    measure_table,
    score_table,
    used_suites,
)
from edgemed_benchmarks.summary import ArmSummary, RunSummary

WIDTH = 79
_WIDTHS = (30, 15, 24, 6)


def summary_lines(summary: RunSummary) -> list[str]:
    """Return verdict, what was measured, and the tables; no line is longer than `WIDTH` columns."""
    lines: list[str] = []
    for arm in summary.arms:
        lines += _verdict(arm, named=len(summary.arms) > 1)
    counts = summary.validity
    lines += _wrapped(
        verdict_text.validity_sentence(counts.samples, counts.suspect, counts.invalid, counts.reasons)
    )
    for note in summary.notes:
        lines += _wrapped(note)
    lines.append("")
    for name, text in facts(summary).items():
        lines += _wrapped(f"{name}: {text}", indent="  ")
    for title, rows in _tables(summary):
        lines += ["", f"{title} (value, 95 % interval, n)"]
        lines += [line for row in rows for line in _row(row)]
    if line := difference_line(summary.arms):
        lines += ["", *_wrapped(line)]
    return lines


def _tables(summary: RunSummary) -> Iterator[tuple[str, Sequence[Cells]]]:
    arms = summary.arms
    if "latency" in used_suites(summary):
        yield "Speed and memory", list(measure_table(arms, [arm.speed for arm in arms]))
    for suite, title in SCORED_SUITES.items():
        if len(rows := list(score_table(arms, suite))) > 1:
            yield title, rows
    with_energy = [arm for arm in arms if arm.energy]
    if with_energy:
        measures = [arm.energy.measures for arm in with_energy if arm.energy]
        yield "Energy", list(measure_table(with_energy, measures))
    if any(arm.endurance for arm in arms):
        yield "Endurance", list(measure_table(arms, [arm.endurance for arm in arms]))


def _verdict(arm: ArmSummary, *, named: bool) -> list[str]:
    label = f"{arm.arm.label}: " if named else ""
    lines = _wrapped(label + arm.headline)
    details = list(arm.details) if arm.limits[0].samples else []
    if arm.fidelity:
        details.append(verdict_text.fidelity_sentence(arm.fidelity))
    for text in details:
        lines += _wrapped(text, indent="  ")
    return [*lines, ""]


def _row(row: Cells) -> Iterator[str]:
    if row.kind == "head":
        return
    if row.kind == "group":
        yield from _wrapped(row.cells[0][0])
        return
    (name, _note), (value, below), *_p90, (count, _) = row.cells
    name = f"  {name}" if row.kind == "indented" else name
    # Beside a missing value or interval stands the reason, in a line of its own.
    fits = value != "–" and _columns(below) <= _WIDTHS[2]
    cells = (name, value, below if fits else "", count)
    fitted = [_fitted(text, width) for text, width in zip(cells, _WIDTHS, strict=True)]
    yield " ".join(fitted).rstrip()
    if below and not fits:
        yield from _wrapped(below, indent="    ")


def _fitted(text: str, columns: int) -> str:
    """Return a text in just so many columns, cut with an ellipsis where it is longer."""
    text = _printable(text)
    if _columns(text) > columns:
        while _columns(text) > columns - 1:
            text = text[:-1]
        text += "…"
    return text + " " * (columns - _columns(text))


def _columns(text: str) -> int:
    """Return how many columns a terminal needs: Chinese letters take two, marks none."""
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )


def _printable(text: str) -> str:
    """Keep control characters of a damaged or hostile file from the terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _wrapped(text: str, *, indent: str = "") -> list[str]:
    return textwrap.wrap(
        _printable(text), WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  " if indent else ""
    ) or [""]
