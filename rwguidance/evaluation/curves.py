"""Curves: what methods gain against strength, against cost, and against each other's gains.

A panel is data; :func:`draw` and :func:`inline` make pictures of panels. A method has one color and
one marker in all of them, of a palette that color-blind people can tell apart. What rests on a
target of few effective draws has open markers.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..support.files import replacing
from ..support.outside import require
from .appearance import APPEARANCE
from .figures import TILTED
from .measured import Measured
from .results import BASE, Results

__all__ = ["COLORS", "Line", "Panel", "Point", "draw", "drawn", "inline", "panels_of"]

Rows = Sequence[Mapping[str, Any]]

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Colors of methods, by Okabe and Ito; there are no more methods in a panel."""

_MARKERS = "osD^vP"
_INK, _GRAY = "#000000", "#808080"
_LOGARITHMIC = ("nats", "calls with draws")


class Point(NamedTuple):
    """A point of a curve: its place and height, and whether its target has few effective draws."""

    x: Measured
    y: Measured
    few: bool = False


@dataclass(frozen=True)
class Line:
    """The points of one method, or none.

    Arguments:
        label: Label of the method.
        points: Points in the order in which a line joins them.
    """

    label: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Arguments:
        x: Label of the horizontal axis.
        y: Label of the vertical axis.
        caption: What there is to see, in a sentence or two.
        lines: Lines by number of the method, which decides the color.
        reference: What the tilted law has.
        base: What the model alone has.
        level: A height of meaning, such as a gain of zero.
        logarithmic: Whether the horizontal axis is.
        ticks: Strengths on the horizontal axis, None if it has others.
    """

    x: str
    y: str
    caption: str
    lines: Mapping[int, Line]
    reference: Line = Line(TILTED, ())
    base: Line = Line(BASE.method, ())
    level: float = 0.0
    logarithmic: bool = True
    ticks: Sequence[float] | None = None


def drawn(results: Results) -> list[str]:
    """Returns the labels of the methods that panels show, the first of them in their order."""

    labels = dict.fromkeys(cell.method for cell in results.cells if cell != BASE)
    return list(labels)[: len(COLORS)]


def panels_of(results: Results, rows: Rows) -> dict[str, list[Panel]]:
    """Returns the panels: against "strength", against "cost", and against the "aligned" reward.

    Arguments:
        results: The results.
        rows: Their figures, from :func:`~rwguidance.evaluation.figures.rows_of`.
    """

    aligned = f"{results.aligned} gain"
    figures = _figures(results)
    strength = [_against(results, rows, "nats", *figure) for figure in figures]
    unseen = {f"{name} gain" for name in results.rewards[1:]}  # against "aligned" they say more
    seen = [figure for figure in figures if figure[0] not in unseen]
    cost = [_against(results, rows, "calls with draws", *figure) for figure in seen]
    others = [name for name in (*results.rewards[1:], *APPEARANCE) if name in results.base.rewards]
    beside = [_beside(results, rows, aligned, name) for name in others]
    panels = {"strength": strength, "cost": cost, "aligned": beside}
    return {key: [one for one in some if one.lines] for key, some in panels.items()}


def _figures(results: Results) -> list[tuple[str, str, str]]:
    """Returns figures of rows, their labels, and what there is to see of them."""

    figures = [
        (
            f"{results.aligned} gain",
            f"gain in {results.aligned}",
            "The reward that is aligned to. A method on the dashed line has as much of it as the "
            "exactly tilted law.",
        )
    ]
    for name in results.rewards[1:]:
        seen = "A reward that no method has seen. Below the dashed line there is less of it than "
        seen += "under the exactly tilted law."
        figures.append((f"{name} gain", f"gain in {name}", seen))
    seen = "1 is the target, the gain of the exactly tilted law; more is overshoot."
    figures.append(("share", "share of the target's gain", seen))
    for name in results.embeddings:
        seen = "Distance of the pictures' law to the exactly tilted one, 0 if they are equal. The "
        seen += "gray line is the model alone: a method above it made the pictures worse."
        figures.append((f"{name} energy", f"energy distance in {name}", seen))
    return figures


def _against(results: Results, rows: Rows, x: str, figure: str, label: str, seen: str) -> Panel:
    """Returns the panel of a figure against strength or cost."""

    lines = _lines(results, rows, x, figure)
    level = 1.0 if figure == "share" else 0.0
    if x != "nats":
        hints = {"share": "1 is the target.", f"{results.aligned} gain": "Up and left is better."}
        caption = hints.get(figure, "Down and left is better." if "energy" in figure else "")
        head = "network calls of a picture, with its share of draws"
        return Panel(head, label, caption, lines, level=level)
    base = Line(BASE.method, ())
    if figure.endswith(" energy") and lines:  # that of the base stands in the rows of all methods
        name = figure.removesuffix("energy")
        base = _line(rows, next(iter(lines.values())).label, x, f"{name}base energy")
    reference = _line(rows, TILTED, x, figure)
    ticks = results.strengths
    return Panel("strength, nats", label, seen, lines, reference, base, level, ticks=ticks)


def _beside(results: Results, rows: Rows, aligned: str, name: str) -> Panel:
    """Returns the panel of gains in another reward against those in the aligned one."""

    caption = (
        "What comes with the gain. The dashed line is the exactly tilted law: below it, more of "
        "the gain is the reward's own."
    )
    if name in APPEARANCE:
        caption = "How pictures look. Off the dashed line they look other than under the exactly "
        caption += "tilted law."
    lines = _lines(results, rows, aligned, f"{name} gain")
    target = _line(rows, TILTED, aligned, f"{name} gain")
    if target.points:  # a tilted law of no strength is the model
        model = Point(Measured(0.0, 0.0), Measured(0.0, 0.0))
        target = Line(TILTED, [model, *target.points])
    heads = f"gain in {results.aligned}", f"gain in {name}"
    return Panel(*heads, caption, lines, target, logarithmic=False)


def _lines(results: Results, rows: Rows, x: str, figure: str) -> dict[int, Line]:
    lines = {i: _line(rows, label, x, figure) for i, label in enumerate(drawn(results))}
    return {i: line for i, line in lines.items() if line.points}


def _line(rows: Rows, method: str, x: str, figure: str) -> Line:
    """Returns the points of a method that have both numbers, and a place on the axis."""

    some = [row for row in rows if row["method"] == method and row.get(x) is not None]
    points = [
        Point(Measured.of(row, x), Measured.of(row, figure), row.get("few", False)) for row in some
    ]
    # What costs nothing, such as pictures from elsewhere, has no place on a logarithmic axis.
    there = lambda place: place.known and (place.value > 0 or x not in _LOGARITHMIC)
    return Line(method, [point for point in points if there(point.x) and point.y.known])


def draw(panels: Sequence[Panel], paths: Sequence[Path], title: str) -> None:
    """Writes panels beside each other to files, atomically.

    Arguments:
        panels: The panels, one at least.
        paths: Files whose suffixes are those of their formats, such as .svg and .png.
        title: The line at the top.

    Raises:
        ImportError: If matplotlib is missing.
    """

    columns = min(3, len(panels))
    down = -(-len(panels) // columns)
    with _style():
        figure = _figure(4.2 * columns, 3.4 * down + 1)
        axes = list(figure.subplots(down, columns, squeeze=False).flat)
        handles: dict[str, Any] = {}
        for axis, panel in zip(axes, panels, strict=False):
            _draw(axis, panel)
            handles |= {one.get_label(): one for one in axis.get_legend_handles_labels()[0]}
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
        figure.suptitle(_plain(title))
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=4, frameon=False)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # which would lay out anew for every file
        for path in paths:
            with replacing(path) as partial:
                figure.savefig(partial, dpi=150, metadata=_metadata(path.suffix))


def inline(panel: Panel) -> str:
    """Returns a panel as an SVG element of a page, whose ink has the color of the page's text.

    Raises:
        ImportError: If matplotlib is missing.
    """

    buffer = io.StringIO()
    with _style():
        figure = _figure(3.7, 2.9)
        figure.patch.set_visible(False)
        axis = figure.subplots()
        axis.patch.set_visible(False)
        _draw(axis, panel)
        figure.savefig(buffer, format="svg", metadata=_metadata(".svg"))
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    # What names addresses, holds for the whole page, or would come twice in it.
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    return re.sub(r' xmlns(:\w+)?="[^"]*"| id="[a-z_]+[\w.]*_\d+"', "", svg)


def _draw(axis: Any, panel: Panel) -> None:
    if panel.logarithmic:
        axis.set_xscale("log")
    axis.axhline(panel.level, color=_GRAY, lw=0.6, zorder=0)
    _plot(axis, panel.base, _GRAY, ".", ":", "the model alone")
    for i, line in panel.lines.items():
        _plot(axis, line, COLORS[i], _MARKERS[i], "-", line.label, _aside(panel, line))
    _plot(axis, panel.reference, _INK, "d", "--", "exactly tilted law")
    axis.set(xlabel=_plain(panel.x), ylabel=_plain(panel.y))
    axis.spines[["top", "right"]].set_visible(False)
    if panel.logarithmic:
        _set_ticks(axis, panel)


def _aside(panel: Panel, line: Line) -> float:
    """Returns a factor that moves lines of one place apart, so that their errors can be read.

    At a strength all methods are at one place, and at a cost those that cost the same.
    """

    if not panel.logarithmic:
        return 1.0
    same = [
        one
        for one in panel.lines.values()
        if panel.ticks is not None or one.points[0].x.value == line.points[0].x.value
    ]
    return float(1.03 ** (same.index(line) - (len(same) - 1) / 2))


def _plot(
    axis: Any, line: Line, color: str, marker: str, style: str, label: str, aside: float = 1.0
) -> None:
    """Draws a line with errors, its places multiplied by a factor."""

    if not line.points:
        return
    x = [aside * point.x.value for point in line.points]
    y = [point.y.value for point in line.points]
    errors = [point.y.error for point in line.points], [point.x.error for point in line.points]
    axis.errorbar(x, y, *errors, fmt=style, color=color, lw=1.3, elinewidth=1, capsize=2)
    for place, height, point in zip(x, y, line.points, strict=True):
        axis.plot(place, height, marker, ms=5, color=color, mfc="none" if point.few else color)
    axis.plot([], [], style, marker=marker, ms=5, lw=1.3, color=color, label=_plain(label))


def _set_ticks(axis: Any, panel: Panel) -> None:
    """Sets ticks whose labels do not meet; those of poor targets have a dagger."""

    lines = [*panel.lines.values(), panel.reference, panel.base]
    points = [point for line in lines for point in line.points]
    places = sorted({point.x.value for point in points})
    few = {point.x.value for point in points if point.few}
    low, high = places[0] / 1.3, places[-1] * 1.3
    if panel.ticks is None:
        few, places = set(), [m * 10.0**k for k in range(-3, 12) for m in (1, 2, 5)]
        low = max((one for one in places if one <= low), default=low)
        high = min((one for one in places if one >= high), default=high)
    kept: list[float] = []
    for place in places:
        apart = not kept or math.log(place / kept[-1]) > 0.11 * math.log(high / low)
        if low <= place <= high and apart:
            kept.append(place)
    axis.set_xlim(low, high)
    axis.set_xticks(kept, [f"{x:g}†" if x in few else f"{x:g}" for x in kept])
    axis.minorticks_off()


def _plain(text: str) -> str:
    """Returns a text of the user's in which nothing counts as mathematics."""

    return text.replace("$", r"\$")


def _figure(width: float, height: float) -> Any:
    figure = require("matplotlib.figure", "curves need", "demo").Figure
    return figure(figsize=(width, height), layout="constrained")


def _style() -> Any:
    """Returns a context with settings of these figures alone: no global state, no random names."""

    matplotlib = require("matplotlib", "curves need", "demo")
    return matplotlib.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "rwguidance",
            "font.size": 9,
            "text.color": _INK,
            "axes.edgecolor": _INK,
            "axes.labelcolor": _INK,
            "xtick.color": _INK,
            "ytick.color": _INK,
        }
    )


def _metadata(suffix: str) -> dict[str, Any]:
    """Returns metadata without a date, so that equal figures are equal files."""

    return {"Date": None} if suffix == ".svg" else {}
