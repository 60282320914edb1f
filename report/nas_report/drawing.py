"""Small pieces of HTML and SVG that charts are made of.

A plot is an SVG of 1000 x 1000 units that stretches to any width (strokes keep theirs), with its labels as text of
the page over it: so one drawing is sharp and readable wide and narrow, light and dark, and no font is scaled.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

import numpy as np

from nas_report.analysis import Numbers

Point = tuple[float, float]

_LEVELS = 10
# Below this a row of a heat map has no room for a label of its own.
_LABEL_PIXELS = 13


def number(value: float, digits: int = 4) -> str:
    """Return a number for people: thousands with commas, ``digits`` significant digits otherwise."""
    if not math.isfinite(value):
        return "not finite"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    if abs(value) < 1e-4:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def short_number(value: float) -> str:
    """Return a number for an axis: 1.2k, 3.4M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def percent(share: float) -> str:
    """Return a share as whole per cent, or with one digit below ten."""
    return f"{100 * share:.0f} %" if share >= 0.0995 or share == 0 else f"{100 * share:.1f} %"


# ---------------------------------------------------------------- plots


@dataclass(frozen=True)
class Axis:
    """A scale from data to 0..1000."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def around(cls, values: Iterable[float], *, log: bool = False, room: float = 0.04) -> "Axis":
        """Return an axis that holds all values, with a little room at both ends."""
        finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
        low, high = min(finite), max(finite)
        if log:
            factor = max(1.02, (high / low) ** room)
            return cls(low / factor, high * factor, log=True)
        if high == low:
            pad = abs(high) * 0.1 or 1.0
            return cls(low - pad, high + pad)
        pad = (high - low) * room
        return cls(low - pad, high + pad)

    def at(self, value: float) -> float:
        """Return where a value is, 0 at the low end and 1000 at the high one."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return 1000 * (value - low) / (high - low)

    def ticks(self, about: int = 5) -> list[float]:
        """Return round values on the axis."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
                found = [step * 10.0**decade for decade in decades for step in steps]
                found = [value for value in found if self.low <= value <= self.high]
                if len(found) >= 3:
                    return found
        rough = (self.high - self.low) / about
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * each for each in (1, 2, 2.5, 5, 10) if power * each >= rough)
        first = math.ceil(self.low / step - 1e-9)
        return [round(index * step, 12) for index in range(first, math.floor(self.high / step + 1e-9) + 1)]


def whole_ticks(axis: Axis, about: int = 6) -> list[float]:
    """Return round whole values on an axis of counts."""
    return [value for value in axis.ticks(about) if value == int(value)]


def _xy(point: Point) -> str:
    return f"{point[0]:.5g} {1000 - point[1]:.5g}"


def line(points: Sequence[Point], look: str) -> str:
    """Return a line through points of 0..1000, y upwards."""
    return f'<path class="m {look}" d="M{"L".join(map(_xy, points))}"/>' if points else ""


def stairs(points: Sequence[Point], look: str, end: float = 1000) -> str:
    """Return a line that keeps each value until the next point, and the last one to ``end``."""
    if not points:
        return ""
    parts = [f"M{_xy(points[0])}"]
    for (_, before), (x, y) in pairwise(points):
        if y != before:
            parts.append(f"H{x:.5g}V{1000 - y:.5g}")
    return f'<path class="m {look}" d="{"".join(parts)}H{end:.5g}"/>'


def band(lower: Sequence[Point], upper: Sequence[Point], look: str) -> str:
    """Return the area between two lines."""
    return f'<path class="a {look}" d="M{"L".join(map(_xy, [*lower, *reversed(upper)]))}Z"/>' if lower else ""


def dots(points: Iterable[Point], look: str, titles: Sequence[str] | None = None) -> str:
    """Return round dots; with titles, each says its own when pointed at."""
    strokes = [f"M{_xy(point)}h0" for point in points]
    if not strokes:
        return ""
    if titles is None:
        return f'<path class="m dot {look}" d="{"".join(strokes)}"/>'
    return "".join(
        f'<path class="m dot {look}" d="{stroke}"><title>{escape(title)}</title></path>'
        for stroke, title in zip(strokes, titles, strict=True)
    )


def density(points: Sequence[Point], columns: int, rows: int) -> str:
    """Return many points as counts in a grid, darker where more are; each step of the scale doubles the count."""
    grid = np.zeros((rows, columns))
    for x, y in points:
        grid[min(rows - 1, int((1000 - y) * rows / 1000)), min(columns - 1, int(x * columns / 1000))] += 1
    largest = max(1.0, grid.max())
    with np.errstate(divide="ignore"):
        shade = np.where(grid > 0, 0.15 + 0.75 * np.log2(grid) / max(1.0, math.log2(largest)), np.nan)
    return f'<g transform="scale({1000 / columns:.5g} {1000 / rows:.5g})">{cells(shade)}</g>'


def note(x: float, y: float, text: str, look: str = "", *, turn: float = 550) -> str:
    """Return a word at a point of 0..1000; it stands to the left of points beyond ``turn``."""
    side = "left" if x > turn else ""
    return f'<span class="note {look} {side}" style="left:{x / 10:.2f}%;top:{100 - y / 10:.2f}%">{escape(text)}</span>'


def plot(
    marks: Sequence[str],
    x: Axis,
    y: Axis,
    *,
    label: str,
    names: tuple[str, str],
    notes: Sequence[str] = (),
    height: int = 240,
    x_ticks: Sequence[float] | None = None,
    y_ticks: Sequence[float] | None = None,
) -> str:
    """Return a plot.

    Args:
        marks: what is drawn, back to front.
        x: the horizontal axis.
        y: the vertical axis.
        label: what it shows, for those who do not see it.
        names: what x and y are.
        notes: from ``note``.
        height: pixels.
        x_ticks: the axis's own when None.
        y_ticks: the axis's own when None.
    """
    rows = y.ticks() if y_ticks is None else y_ticks
    columns = x.ticks() if x_ticks is None else x_ticks
    grid = "".join(f"M0 {1000 - y.at(value):.5g}H1000" for value in rows)
    small = "".join(f"M{x.at(value):.5g} 1000v12" for value in columns)
    digits = [f"{value:.10g}".partition(".")[2] for value in rows]
    places = 0 if y.log else max(map(len, digits), default=0)
    texts = [
        f'<span class="yt" style="top:{100 - y.at(value) / 10:.2f}%">'
        f"{short_number(value) if y.log or abs(value) >= 1e5 else f'{value:,.{places}f}'.replace('-', '−')}</span>"
        for value in rows
    ]
    texts += [
        f'<span class="xt" style="left:{x.at(value) / 10:.2f}%">'
        f"{short_number(value) if x.log or abs(value) >= 1e5 or value != int(value) else f'{int(value):,}'}</span>"
        for value in columns
    ]
    return (
        f'<div class="plot" role="img" aria-label="{escape(label)}" style="height:{height}px">'
        f'<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" aria-hidden="true"><path class="m grid" d="{grid}"/>'
        f'<path class="m axis" d="M0 1000H1000{small}"/>{"".join(marks)}</svg>{"".join(texts)}{"".join(notes)}'
        f'<span class="yn">{escape(names[1])}</span><span class="xn">{escape(names[0])}</span></div>'
    )


# ---------------------------------------------------------------- heat maps


def cells(matrix: Numbers) -> str:
    """Return values of 0..1 as squares of one unit, in ten shades; NaN leaves a gap."""
    runs: dict[int, list[str]] = {}
    shades = np.where(np.isfinite(matrix), np.clip(matrix * _LEVELS, 0, _LEVELS - 1), -1).astype(int)
    for row, shade in enumerate(shades):
        start = 0
        for column in range(1, len(shade) + 1):
            if column == len(shade) or shade[column] != shade[start]:
                if shade[start] >= 0:
                    runs.setdefault(int(shade[start]), []).append(f"M{start} {row}h{column - start}v1H{start}z")
                start = column
    return "".join(f'<path class="l{level}" d="{"".join(parts)}"/>' for level, parts in sorted(runs.items()))


def merged(matrix: Numbers, labels: Sequence[str], most: int) -> tuple[Numbers, list[str]]:
    """Return at most ``most`` rows: neighbours become their mean, under the name ``first to last``."""
    if len(labels) <= most:
        return matrix, list(labels)
    edges = [round(len(labels) * index / most) for index in range(most + 1)]
    rows, names = [], []
    for one, other in pairwise(edges):
        block = matrix[one:other]
        known = np.isfinite(block)
        count = known.sum(axis=0)
        rows.append(np.where(count, np.where(known, block, 0).sum(axis=0) / np.maximum(count, 1), np.nan))
        names.append(labels[one] if other == one + 1 else f"{labels[one]} to {labels[other - 1]}")
    return np.array(rows), names


def heat(
    matrix: Numbers, labels: Sequence[str], *, title: str, ends: tuple[str, str], height: int | None = None
) -> str:
    """Return a heat map with a row for each label.

    Args:
        matrix: rows x columns of values in 0..1; NaN leaves a gap.
        labels: of the rows, from the top.
        title: what it shows.
        ends: what the first and the last column are.
        height: pixels of all rows; chosen by their number when None.
    """
    rows, columns = matrix.shape
    height = height or rows * (20 if rows <= 6 else _LABEL_PIXELS)
    every = math.ceil(_LABEL_PIXELS * rows / height)
    names = "".join(
        f'<span style="top:{100 * (row + 0.5) / rows:.2f}%">{escape(label)}</span>'
        for row, label in enumerate(labels)
        if row % every == 0
    )
    hints = "".join(
        f'<path class="hit" d="M0 {row}h{columns}v1H0z"><title>{escape(_row_words(label, matrix[row], ends))}</title>'
        "</path>"
        for row, label in enumerate(labels)
    )
    return (
        f'<figure class="heat"><figcaption>{escape(title)}</figcaption><div class="rows" style="height:{height}px">'
        f'<div class="names">{names}</div><svg role="img" aria-label="{escape(title)}" viewBox="0 0 {columns} {rows}"'
        f' preserveAspectRatio="none">{cells(matrix)}{hints}</svg></div>'
        f'<div class="ends"><span>{escape(ends[0])}</span><span>{escape(ends[1])}</span></div></figure>'
    )


def _row_words(label: str, row: Numbers, ends: tuple[str, str]) -> str:
    known = [f"{value:.2f}" for value in row if math.isfinite(value)]
    if not known:
        return f"{label}: none"
    if len(known) == 1:
        return f"{label}: {known[0]}"
    return f"{label}: {known[0]} at first, {known[-1]} at last ({ends[0]} to {ends[1]})"


def scale(low: str, high: str) -> str:
    """Return the key of the ten shades."""
    steps = "".join(f'<i class="l{level}"></i>' for level in range(_LEVELS))
    return f'<span class="scale"><span>{escape(low)}</span>{steps}<span>{escape(high)}</span></span>'


# ---------------------------------------------------------------- words


def key(entries: Sequence[tuple[str, str]]) -> str:
    """Return a legend: pairs of look and text."""
    return (
        '<p class="key">'
        + "".join(f'<span><i class="{look}"></i>{escape(text)}</span>' for look, text in entries)
        + "</p>"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, words: frozenset[int] = frozenset()) -> str:
    """Return a table of texts; numbers stand to the right, columns in ``words`` to the left."""

    def cell(tag: str, index: int, text: str) -> str:
        return f"<{tag}{' class=w' if index in words else ''}>{escape(text)}</{tag}>"

    top = "".join(cell("th", index, text) for index, text in enumerate(head))
    body = "".join(f"<tr>{''.join(cell('td', index, text) for index, text in enumerate(row))}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def numbers(content: str, title: str = "The numbers") -> str:
    """Return a fold with the numbers behind a figure."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>"
