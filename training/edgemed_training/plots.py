"""Line charts as SVG, written by hand: no script, light and dark by the reader's own choice. As PNG by resvg.

A chart is drawn for a telephone's width and grows with the page. Used by `report`.
"""

import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.util import find_spec

from edgemed.errors import MissingExtra
from edgemed_training.errors import TrainingError

WIDTH, PLOT_HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 12, 36
LEGEND_LINE, LEGEND_COLUMNS = 17, 2
LARGEST_COUNT = 300
"""Points of one line; longer ones are averaged, so that a report stays small."""
_LIGHT = {
    "c0": "#0060a8",
    "c1": "#b24700",
    "c2": "#00795c",
    "c3": "#a3327d",
    "c4": "#6f5600",
    "c5": "#5b4bc4",
    "c6": "#3d4852",
    "ink": "#1b2126",
    "faint": "#d5dade",
    "paper": "#fff",
}
_DARK = {
    "c0": "#6db7f2",
    "c1": "#f5a068",
    "c2": "#56cfab",
    "c3": "#ec93cb",
    "c4": "#e2c65c",
    "c5": "#b5aaff",
    "c6": "#b4c0ca",
    "ink": "#e4e9ed",
    "faint": "#3a444d",
    "paper": "#14191d",
}
_SHAPES = """
.chart text { fill: var(--ink); }
.chart .grid { stroke: var(--faint); }
.chart .line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
"""


def _variables(colours: Mapping[str, str]) -> str:
    return ".chart {" + "".join(f" --{name}:{colour};" for name, colour in colours.items()) + " }"


CHART_STYLE = f"""
.chart {{ font: 11px system-ui, sans-serif; }}
{_variables(_LIGHT)}
@media (prefers-color-scheme: dark) {{
{_variables(_DARK)}
}}{_SHAPES}"""
_BACKGROUND = "svg { background: var(--paper); }"
_VARIABLE = re.compile(r"var\(--(\w+)\)")
_FONTS = (
    "Arial, Liberation Sans, Helvetica, Segoe UI, DejaVu Sans, Noto Sans, Roboto, Ubuntu, FreeSans, "
    "Nimbus Sans, Cantarell, Verdana, Tahoma, Droid Sans, Piboto, sans-serif"
)
"""For PNG: the renderer draws no text at all in a family that is not there."""
_PNG_SCALE = 3
_DASHES = ("", "6 3", "2 3", "8 3 2 3", "", "6 3", "2 3")


@dataclass(frozen=True)
class Line:
    """One line of a chart; points without a finite value are left out."""

    name: str
    points: Sequence[tuple[float, float | None]]
    has_marks: bool = False
    """Draw each point."""


def line_chart(title: str, x_name: str, lines: Sequence[Line], *, from_zero: bool = False) -> str:
    """Return an SVG element that takes its colours from `CHART_STYLE`.

    Args:
        title: read out by screen readers.
        x_name: stands under the axis.
        lines: at most seven keep colours of their own.
        from_zero: begin the vertical axis at 0.
    """
    drawn = [
        (line, thinned([(x, y) for x, y in line.points if y is not None and math.isfinite(y)]))
        for line in lines
    ]
    everything = [point for _line, points in drawn for point in points]
    height = PLOT_HEIGHT + LEGEND_LINE * -(-len(lines) // LEGEND_COLUMNS)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>{escape(title)}</title>",
    ]
    if everything:
        x_ticks = _ticks(min(x for x, _y in everything), max(x for x, _y in everything))
        low = 0.0 if from_zero else min(y for _x, y in everything)
        y_ticks = _ticks(low, max(y for _x, y in everything))
        parts += _axes(x_ticks, y_ticks, x_name)
        for index, (line, points) in enumerate(drawn):
            parts += _curve(index, line, points, x_ticks, y_ticks)
    else:
        parts.append(f'<text x="{WIDTH / 2}" y="{PLOT_HEIGHT / 2}" text-anchor="middle">no values</text>')
    parts += _legend(lines)
    return "".join([*parts, "</svg>"])


def standalone(svg: str) -> str:
    """Return a chart as a file of its own, its style within."""
    head, end, rest = svg.partition("</title>")
    return f"{head}{end}<style>{_BACKGROUND}{CHART_STYLE}</style>{rest}\n"


def png(svg: str) -> bytes:
    """Return a chart as a PNG of three times its size, on white.

    Raises:
        MissingExtra: resvg-py is not installed.
        TrainingError: this machine has no font that the text could be drawn with.
    """
    if find_spec("resvg_py") is None:
        raise MissingExtra(
            "Charts as PNG need resvg-py, which is not installed here; as SVG they are written.",
            hint="pip install 'edgemed[train]'",
        )
    if not draws_text():
        raise TrainingError(
            "This machine has no font to draw the charts' text with: they are written as SVG, not as PNG.",
            hint="Install a font, such as fonts-dejavu-core on Debian, or look at the SVG files.",
        )
    head, end, rest = svg.partition("</title>")
    style = f"<style>.chart text {{ font-size: 11px; font-family: {_FONTS}; }}{_SHAPES}</style>"
    # The renderer knows no CSS variables.
    return _rendered(_VARIABLE.sub(lambda name: _LIGHT[name[1]], f"{head}{end}{style}{rest}"))


@functools.cache
def draws_text() -> bool:
    """Whether a letter leaves ink: without a font the renderer leaves text out in silence."""
    with_text, without = (
        _rendered(
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 20 20">'
            f'<text x="2" y="15" font-size="12" font-family="{_FONTS}">{text}</text></svg>'
        )
        for text in ("e0", "")
    )
    return with_text != without


def _rendered(svg: str) -> bytes:
    import resvg_py

    return bytes(resvg_py.svg_to_bytes(svg_string=svg, zoom=_PNG_SCALE, background=_LIGHT["paper"]))


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return at most `LARGEST_COUNT` points, each the mean of neighbours."""
    if len(points) <= LARGEST_COUNT:
        return list(points)
    parts = [
        points[index * len(points) // LARGEST_COUNT : (index + 1) * len(points) // LARGEST_COUNT]
        for index in range(LARGEST_COUNT)
    ]
    return [(sum(x for x, _y in part) / len(part), sum(y for _x, y in part) / len(part)) for part in parts]


def _ticks(low: float, high: float) -> list[float]:
    """Return three to seven round values that enclose a range."""
    spread = high - low or max(abs(high), 1e-9)
    unit = 10.0 ** math.floor(math.log10(spread / 4))
    step = next(factor * unit for factor in (1, 2, 5, 10) if spread / (factor * unit) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


def _place(value: float, ticks: Sequence[float], start: float, end: float) -> float:
    return start + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (end - start)


def _x(value: float, ticks: Sequence[float]) -> float:
    return _place(value, ticks, LEFT, WIDTH - RIGHT)


def _y(value: float, ticks: Sequence[float]) -> float:
    return _place(value, ticks, PLOT_HEIGHT - BOTTOM, TOP)


def _axes(x_ticks: Sequence[float], y_ticks: Sequence[float], x_name: str) -> Iterator[str]:
    bottom = PLOT_HEIGHT - BOTTOM
    for tick in y_ticks:
        y = _y(tick, y_ticks)
        yield f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
        yield f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{tick:.4g}</text>'
    for tick in x_ticks:
        yield f'<text x="{_x(tick, x_ticks):.1f}" y="{bottom + 15}" text-anchor="middle">{tick:.6g}</text>'
    middle = (LEFT + WIDTH - RIGHT) / 2
    yield f'<text x="{middle}" y="{bottom + 30}" text-anchor="middle">{escape(x_name)}</text>'


def _curve(
    index: int,
    line: Line,
    points: Sequence[tuple[float, float]],
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
) -> Iterator[str]:
    places = [(_x(x, x_ticks), _y(y, y_ticks)) for x, y in points]
    if len(places) > 1:
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        yield f'<path class="line" {_stroke(index)} d="M{path}"/>'
    if line.has_marks or len(places) == 1:
        for x, y in places:
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" style="fill:var(--c{index % 7})"/>'


def _legend(lines: Sequence[Line]) -> Iterator[str]:
    for index, line in enumerate(lines):
        x = 10 + index % LEGEND_COLUMNS * (WIDTH / LEGEND_COLUMNS)
        y = PLOT_HEIGHT + LEGEND_LINE * (index // LEGEND_COLUMNS) + 8
        yield f'<path class="line" {_stroke(index)} d="M{x:g} {y - 4}h22"/>'
        yield f'<text x="{x + 28:g}" y="{y}">{escape(line.name[:26])}</text>'


def _stroke(index: int) -> str:
    dashes = _DASHES[index % len(_DASHES)]
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'style="stroke:var(--c{index % 7})"{dashed}'
