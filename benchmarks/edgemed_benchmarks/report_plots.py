"""Which plots a report has: captions and charts made from summaries. Points are thinned to keep it small."""

from collections.abc import Sequence
from typing import NamedTuple

from edgemed.records import Sample
from edgemed_benchmarks.answer_times import SECOND_NS, as_used
from edgemed_benchmarks.score_format import Score
from edgemed_benchmarks.summary import ArmSummary, RunSummary
from edgemed_benchmarks.svg import (
    Line,
    Spot,
    StripRow,
    buckets,
    line_chart,
    reliability_diagram,
    scatter,
    strip_plot,
    thinned,
)

QUALITY_FIRST = ("accuracy", "token_f1", "rouge_l", "exact_match")
"""The score that stands for an arm's quality: the first of these that it has, else its first good one."""
_MOST_DOTS = 300
_MOST_BUCKETS = 120
_TELEMETRY = (
    ("temperature_celsius", "Temperature, °C", 1.0, False),
    ("frequency_hertz", "Processor frequency, GHz", 1e9, True),
    ("battery_percent", "Battery, %", 1.0, False),
    ("battery_watts", "Battery's power, W", 1.0, False),
    ("other_cpu_share", "Processor time of other programs, %", 0.01, True),
    ("engine_rss_bytes", "Memory of the engine, MB", 1e6, True),
    ("available_memory_bytes", "Free memory, GB", 1e9, True),
)


class Plot(NamedTuple):
    """A chart with what stands above and below it."""

    caption: str
    svg: str
    explanation: str


def plots(summary: RunSummary, *, density: float = 1.0) -> list[Plot]:
    """Return a run's plots; those without data are left out.

    Args:
        summary: of one run.
        density: share of the usual number of points; a report of many runs takes less of each.
    """
    dots, steps = max(20, round(_MOST_DOTS * density)), max(20, round(_MOST_BUCKETS * density))
    start = summary.run.start
    found = [
        _strips(summary, "First words", start.first_words_limit_seconds, dots, first_text=True),
        _strips(summary, "Whole answer", start.full_answer_limit_seconds, dots, first_text=False),
        _token_times(summary, steps),
        *(_telemetry(summary, *what, steps) for what in _TELEMETRY),
        _reliability(summary),
    ]
    return [plot for plot in found if plot]


def pareto(summaries: Sequence[RunSummary]) -> Plot | None:
    """Return seconds against quality over all arms of all runs that have both; None for fewer than two.

    All arms are shown by the same score, for two scores cannot share an axis.
    """
    arms = [(summary, arm) for summary in summaries for arm in summary.arms]
    shared = [
        key
        for key in dict.fromkeys((s.metric, s.item_set) for _summary, arm in arms for s in _good_scores(arm))
        if sum(_score_of(arm, key) is not None for _summary, arm in arms) > 1
    ]
    if not shared:
        return None
    rank = {name: place for place, name in enumerate(QUALITY_FIRST)}
    chosen = min(shared, key=lambda key: rank.get(key[0], len(rank)))
    spots = []
    for colour, (summary, arm) in enumerate(arms):
        score, seconds = _score_of(arm, chosen), arm.measure("answer_seconds")
        if score and score.value is not None and seconds and seconds.estimate.value is not None:
            spots.append(
                Spot(
                    arm.arm.label if len(summaries) == 1 else f"{summary.name} {arm.arm.label}",
                    seconds.estimate.value,
                    score.value,
                    _range(seconds.estimate.low, seconds.estimate.high),
                    _range(score.low, score.high),
                    colour,
                )
            )
    if len(spots) < 2:
        return None
    name = f"{chosen[0].replace('_', ' ')}{f' on {chosen[1]}' if chosen[1] else ''}"
    return Plot(
        f"Time against quality: {name}",
        scatter(
            f"Seconds of a whole answer against {name}", "seconds until the whole answer (median)", spots
        ),
        "Further left is faster, higher is better. Thin lines are 95 % intervals: where they overlap, the "
        "order means little.",
    )


def _strips(summary: RunSummary, name: str, limit: float, dots: int, *, first_text: bool) -> Plot | None:
    rows = []
    for arm in summary.arms:
        samples = as_used(arm.samples)
        if not samples:
            continue
        measure = arm.measure("first_text_seconds" if first_text else "answer_seconds")
        assert measure is not None
        estimate = measure.estimate
        valid = [s for s in samples if s.validity.verdict != "invalid"]
        invalid = [s for s in samples if s.validity.verdict == "invalid"]
        rows.append(
            StripRow(
                arm.arm.label,
                thinned(_seconds(valid, first_text=first_text), dots),
                thinned(_seconds(invalid, first_text=first_text), dots),
                estimate.value,
                estimate.low,
                estimate.high,
            )
        )
    if not any(row.values or row.invalid for row in rows):
        return None
    return Plot(
        f"{name}: every question",
        strip_plot(f"{name}, seconds", "seconds after the question", rows, limit=limit),
        "A dot is an answer, a cross an invalid one. The bars are the median and its 95 % interval.",
    )


def _seconds(samples: Sequence[Sample], *, first_text: bool) -> list[float]:
    times = [s.times.first_text_ns if first_text else s.times.end_ns for s in samples]
    return [nanoseconds / SECOND_NS for nanoseconds in times if nanoseconds is not None]


def _token_times(summary: RunSummary, steps: int) -> Plot | None:
    lines = []
    for arm in summary.arms:
        points: list[tuple[float, float]] = []
        for sample in arm.samples:
            # The line was written when the answer was there.
            began = (sample.at_ns - sum(sample.times.token_ns)) / SECOND_NS
            for nanoseconds in sample.times.token_ns:
                began += nanoseconds / SECOND_NS
                points.append((began / 60, nanoseconds / 1e6))
        if points:
            grouped = buckets(points, steps)
            middle = [(x, ys[len(ys) // 2]) for x, ys in grouped]
            band = [(x, ys[len(ys) // 10], ys[9 * len(ys) // 10]) for x, ys in grouped]
            lines.append(Line(arm.arm.label, middle, band if len(summary.arms) == 1 else ()))
    if not lines:
        return None
    share = "; the band holds 8 of 10 of them" if len(summary.arms) == 1 else ""
    return Plot(
        "From token to token, milliseconds",
        line_chart("Inter-token times over the run", "minutes since the run's start", lines),
        f"The median of the times between tokens{share}. A line that rises means heat, or less power.",
    )


def _telemetry(
    summary: RunSummary, field: str, caption: str, unit: float, from_zero: bool, steps: int
) -> Plot | None:
    points = [
        (line.at_ns / SECOND_NS / 60, value / unit)
        for line in summary.run.telemetry
        if (value := getattr(line, field)) is not None
    ]
    if len(points) < 2:
        return None
    middle = [(x, ys[len(ys) // 2]) for x, ys in buckets(points, steps)]
    chart = line_chart(caption, "minutes since the run's start", [Line(caption, middle)], from_zero=from_zero)
    return Plot(caption, chart, "")


def _reliability(summary: RunSummary) -> Plot | None:
    lines = [
        (arm.arm.label, [(one.mean_confidence, one.share_right, one.n) for one in arm.bins])
        for arm in summary.arms
        if arm.bins
    ]
    if not lines:
        return None
    return Plot(
        "Does the model know what it knows? Share of right answers",
        reliability_diagram("Reliability diagram", lines),
        "On the dashed line it is right as often as it is sure; below it is too sure. Larger dots stand "
        "for more questions.",
    )


def _good_scores(arm: ArmSummary) -> list[Score]:
    return [
        score
        for score in arm.scores
        if score.suite == "quality" and score.higher_is_better and score.value is not None
    ]


def _score_of(arm: ArmSummary, key: tuple[str, str]) -> Score | None:
    return next((score for score in _good_scores(arm) if (score.metric, score.item_set) == key), None)


def _range(low: float | None, high: float | None) -> tuple[float, float] | None:
    return None if low is None or high is None else (low, high)
