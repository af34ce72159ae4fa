"""Charts as SVG, written by hand: no library, no script, light and dark by the reader's own choice.

Each is drawn for a telephone's width and grows with the page. Colours come from the page's style
(`report_style.py`); a mark's shape tells what its colour tells.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import NamedTuple

WIDTH = 360
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 14, 34
COLOURS = 7
PLOT_HEIGHT = 190
_ROW_HEIGHT = 52
_LEGEND_LINE = 16
_DASHES = ("", "6 3", "2 3", "8 3 2 3", "", "6 3", "2 3")

Point = tuple[float, float]


class StripRow(NamedTuple):
    """One row of a strip plot: every sample a dot."""

    name: str
    values: Sequence[float]
    invalid: Sequence[float] = ()
    """Drawn as crosses."""
    median: float | None = None
    low: float | None = None
    high: float | None = None


class Line(NamedTuple):
    """One line of a chart, perhaps with a band around it."""

    name: str
    points: Sequence[Point]
    band: Sequence[tuple[float, float, float]] = ()
    """x, low, high."""


class Spot(NamedTuple):
    """One thing in a plane, with its intervals."""

    name: str
    x: float
    y: float
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    colour: int = 0


def strip_plot(title: str, x_name: str, rows: Sequence[StripRow], *, limit: float | None = None) -> str:
    """Return every sample as a dot, each row's median as a bar with its interval, the limit as a line.

    Args:
        title: read out by screen readers.
        x_name: stands under the axis.
        rows: values in the axis' unit; those that are not finite are left out.
        limit: drawn dashed.
    """
    every = [value for row in rows for value in (*row.values, *row.invalid) if math.isfinite(value)]
    if not every:
        return _empty(title)
    ticks = _ticks(0.0, max(*every, limit or 0.0, 1e-9))
    bottom = TOP + _ROW_HEIGHT * len(rows)
    parts = list(_x_axis(ticks, x_name, bottom, left=10))
    for index, row in enumerate(rows):
        parts += _strip(index, row, ticks)
    if limit is not None:
        x = _place(limit, ticks, 10, WIDTH - RIGHT)
        side = "end" if x > WIDTH / 2 else "start"
        parts.append(f'<path class="limit" d="M{x:.1f} {TOP - 4}V{bottom}"/>')
        parts.append(_text(x + (-4 if side == "end" else 4), TOP - 4, f"limit {limit:g}", side))
    return _svg(title, bottom + BOTTOM, parts)


def line_chart(title: str, x_name: str, lines: Sequence[Line], *, from_zero: bool = True) -> str:
    """Return lines over a common axis, each with its band if it has one.

    Args:
        title: read out by screen readers.
        x_name: stands under the axis.
        lines: at most seven keep colours of their own.
        from_zero: begin the vertical axis at 0.
    """
    points = [point for line in lines for point in line.points]
    if not points:
        return _empty(title)
    edges = [edge for line in lines for _x, low, high in line.band for edge in (low, high)]
    ys = [y for _x, y in points] + edges
    x_ticks = _ticks(min(x for x, _y in points), max(x for x, _y in points))
    y_ticks = _ticks(0.0 if from_zero else min(ys), max(ys))
    parts = [*_y_axis(y_ticks), *_x_axis(x_ticks, x_name, PLOT_HEIGHT - BOTTOM)]
    for index, line in enumerate(lines):
        parts += _curve(index, line, x_ticks, y_ticks)
    height = PLOT_HEIGHT
    if len(lines) > 1:
        parts += _legend([line.name for line in lines])
        height += _LEGEND_LINE * len(lines) + 4
    return _svg(title, height, parts)


def reliability_diagram(title: str, lines: Sequence[tuple[str, Sequence[tuple[float, float, int]]]]) -> str:
    """Return how often answers were right against how sure the model was, with the line of a perfect model.

    Args:
        title: read out by screen readers.
        lines: for each arm its name and its bins: mean confidence, share right, number of answers (the dot's
            area).
    """
    ticks = [0.0, 0.25, 0.5, 0.75, 1.0]
    if not any(bins for _name, bins in lines):
        return _empty(title)
    bottom = PLOT_HEIGHT - BOTTOM
    parts = [*_y_axis(ticks), *_x_axis(ticks, "how sure the model was", bottom)]
    parts.append(f'<path class="limit" d="M{LEFT} {bottom}L{WIDTH - RIGHT} {TOP}"/>')
    largest = max(count for _name, bins in lines for _sure, _right, count in bins)
    for index, (_name, bins) in enumerate(lines):
        places = [_spot_place(sure, right, ticks, ticks) for sure, right, _count in bins]
        parts.append(_path(index, places))
        for (x, y), (_sure, _right, count) in zip(places, bins, strict=True):
            radius = 2 + 4 * math.sqrt(count / largest)
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" class="f{index % COLOURS}"/>')
    height = PLOT_HEIGHT
    if len(lines) > 1:
        parts += _legend([name for name, _bins in lines])
        height += _LEGEND_LINE * len(lines) + 4
    return _svg(title, height, parts)


def scatter(title: str, x_name: str, spots: Sequence[Spot]) -> str:
    """Return things by two numbers, their intervals as thin crosses, and the front that nothing beats.

    Fewer is better on the horizontal axis, more on the vertical one.
    """
    if not spots:
        return _empty(title)
    xs = [x for spot in spots for x in (spot.x, *(spot.x_range or ()))]
    ys = [y for spot in spots for y in (spot.y, *(spot.y_range or ()))]
    x_ticks, y_ticks = _ticks(0.0, max(xs)), _ticks(min(ys), max(ys))
    parts = [*_y_axis(y_ticks), *_x_axis(x_ticks, x_name, PLOT_HEIGHT - BOTTOM)]
    front = [_spot_place(spot.x, spot.y, x_ticks, y_ticks) for spot in pareto_front(spots)]
    if len(front) > 1:
        steps = "".join(f"H{x:.1f}V{y:.1f}" for x, y in front[1:])
        parts.append(f'<path class="front" d="M{front[0][0]:.1f} {front[0][1]:.1f}{steps}"/>')
    taken: list[Point] = []
    for number, spot in enumerate(spots, start=1):
        parts += _spot(number, spot, x_ticks, y_ticks, taken)
        y = PLOT_HEIGHT + _LEGEND_LINE * number - 4
        parts.append(f'<circle cx="{LEFT}" cy="{y - 4}" r="4" class="f{spot.colour % COLOURS}"/>')
        parts.append(_text(LEFT + 10, y, f"{number}  {spot.name[:44]}"))
    return _svg(title, PLOT_HEIGHT + _LEGEND_LINE * len(spots) + 6, parts)


def pareto_front(spots: Iterable[Spot]) -> list[Spot]:
    """Return the spots than which no other is both further left and higher, from left to right."""
    front: list[Spot] = []
    for spot in sorted(spots, key=lambda one: (one.x, -one.y)):
        if not front or spot.y > front[-1].y:
            front.append(spot)
    return front


def thinned(values: Sequence[float], most: int) -> list[float]:
    """Return at most so many of the values, evenly by rank: both extremes stay."""
    ordered = sorted(values)
    if len(ordered) <= most:
        return ordered
    return [ordered[round(index * (len(ordered) - 1) / (most - 1))] for index in range(most)]


def buckets(points: Sequence[Point], most: int) -> list[tuple[float, list[float]]]:
    """Return at most so many runs of neighbours: their mean x, and their ys in rising order."""
    count = min(most, len(points))
    parts = [
        points[index * len(points) // count : (index + 1) * len(points) // count] for index in range(count)
    ]
    return [(math.fsum(x for x, _y in part) / len(part), sorted(y for _x, y in part)) for part in parts]


def _svg(title: str, height: float, parts: Iterable[str]) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height:g}" role="img"><title>{escape(title)}</title>'
        f"{''.join(parts)}</svg>"
    )


def _empty(title: str) -> str:
    return _svg(title, 60, [_text(WIDTH / 2, 34, "no values", "middle")])


def _ticks(low: float, high: float) -> list[float]:
    """Return three to seven round values that enclose a range."""
    spread = high - low or max(abs(high), 1e-9)
    unit = 10.0 ** math.floor(math.log10(spread / 4))
    step = next(factor * unit for factor in (1, 2, 5, 10) if spread / (factor * unit) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


def _place(value: float, ticks: Sequence[float], start: float, end: float) -> float:
    return start + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (end - start)


def _spot_place(x: float, y: float, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> Point:
    return _place(x, x_ticks, LEFT, WIDTH - RIGHT), _place(y, y_ticks, PLOT_HEIGHT - BOTTOM, TOP)


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    where = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}"{where}>{escape(text)}</text>'


def _x_axis(ticks: Sequence[float], name: str, bottom: float, *, left: float = LEFT) -> Iterator[str]:
    yield f'<path class="axis" d="M{left} {bottom}H{WIDTH - RIGHT}"/>'
    for index, tick in enumerate(ticks):
        x = _place(tick, ticks, left, WIDTH - RIGHT)
        # The outer labels stay within the picture.
        anchor = "end" if index == len(ticks) - 1 else "start" if index == 0 and left < LEFT else "middle"
        yield f'<path class="axis" d="M{x:.1f} {bottom}v3"/>'
        yield _text(x + (4 if anchor == "end" else 0), bottom + 14, f"{tick:.6g}", anchor)
    yield _text((left + WIDTH - RIGHT) / 2, bottom + 28, name, "middle")


def _y_axis(ticks: Sequence[float]) -> Iterator[str]:
    for tick in ticks:
        y = _place(tick, ticks, PLOT_HEIGHT - BOTTOM, TOP)
        yield f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
        yield _text(LEFT - 5, y + 4, f"{tick:.4g}", "end")


def _strip(index: int, row: StripRow, ticks: Sequence[float]) -> Iterator[str]:
    top = TOP + index * _ROW_HEIGHT
    middle = top + 31
    yield _text(10, top + 11, row.name[:48])

    def dots(values: Sequence[float]) -> Iterator[Point]:
        for number, value in enumerate(value for value in values if math.isfinite(value)):
            # Spread by the golden ratio: even, and the same at each drawing.
            yield _place(value, ticks, 10, WIDTH - RIGHT), middle - 10 + 20 * (number * 0.618034 % 1)

    marks = "".join(f"M{x:.1f} {y:.0f}h.01" for x, y in dots(row.values))
    crosses = "".join(f"M{x - 2:.1f} {y - 2:.0f}l4 4m0-4l-4 4" for x, y in dots(row.invalid))
    if marks:
        yield f'<path class="dots s{index % COLOURS}" d="{marks}"/>'
    if crosses:
        yield f'<path class="crosses" d="{crosses}"/>'
    if row.median is not None and math.isfinite(row.median):
        x = _place(row.median, ticks, 10, WIDTH - RIGHT)
        yield f'<path class="median" d="M{x:.1f} {middle - 14}v28"/>'
        if row.low is not None and row.high is not None and math.isfinite(row.high):
            low, high = (_place(end, ticks, 10, WIDTH - RIGHT) for end in (row.low, row.high))
            yield f'<path class="median" d="M{low:.1f} {middle}H{high:.1f}"/>'


def _curve(index: int, line: Line, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> Iterator[str]:
    if line.band:
        upper = [_spot_place(x, high, x_ticks, y_ticks) for x, _low, high in line.band]
        lower = [_spot_place(x, low, x_ticks, y_ticks) for x, low, _high in reversed(line.band)]
        yield f'<path class="band f{index % COLOURS}" d="M{_joined([*upper, *lower])}Z"/>'
    places = [_spot_place(x, y, x_ticks, y_ticks) for x, y in line.points]
    if len(places) > 1:
        yield _path(index, places)
    else:
        yield (
            f'<circle cx="{places[0][0]:.1f}" cy="{places[0][1]:.1f}" r="3" class="f{index % COLOURS}"/>'
            * len(places)
        )


def _path(index: int, places: Sequence[Point]) -> str:
    if len(places) < 2:
        return ""
    dashes = _DASHES[index % len(_DASHES)]
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<path class="line s{index % COLOURS}"{dashed} d="M{_joined(places)}"/>'


def _joined(places: Iterable[Point]) -> str:
    return "L".join(f"{x:.1f} {y:.1f}" for x, y in places)


def _spot(
    number: int, spot: Spot, x_ticks: Sequence[float], y_ticks: Sequence[float], taken: list[Point]
) -> Iterator[str]:
    colour = spot.colour % COLOURS
    x, y = _spot_place(spot.x, spot.y, x_ticks, y_ticks)
    if spot.x_range:
        low, high = (_spot_place(end, spot.y, x_ticks, y_ticks)[0] for end in spot.x_range)
        yield f'<path class="whisker s{colour}" d="M{low:.1f} {y:.1f}H{high:.1f}"/>'
    if spot.y_range:
        low, high = (_spot_place(spot.x, end, x_ticks, y_ticks)[1] for end in spot.y_range)
        yield f'<path class="whisker s{colour}" d="M{x:.1f} {low:.1f}V{high:.1f}"/>'
    yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" class="f{colour}"/>'
    label_x, label_y = x + 6, y - 6
    while any(abs(label_y - other_y) < 11 and abs(label_x - other_x) < 14 for other_x, other_y in taken):
        label_y -= 11
    taken.append((label_x, label_y))
    yield _text(label_x, label_y, str(number))


def _legend(names: Sequence[str]) -> Iterator[str]:
    for index, name in enumerate(names):
        y = PLOT_HEIGHT + _LEGEND_LINE * index + 10
        yield _path(index, [(LEFT, y - 4), (LEFT + 24, y - 4)])
        yield _text(LEFT + 32, y, name[:48])
