"""Charts as static figures, drawn with matplotlib."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.report.figures import label_placement
from bench.report.figures.chart import Axis, Chart, each
from bench.report.figures.palette import GREY, INK, RC

FILLS: Mapping[str, tuple[str | None, str | None, float, float]] = {
    "full": (None, "white", 0.6, 1.0),
    "solid": (None, None, 1.0, 1.0),
    "strong": (None, INK, 0.9, 1.0),
    "faded": (None, "white", 0.6, 0.55),
    "hollow": ("white", None, 1.5, 1.0),
    "ring": ("none", None, 1.6, 1.0),
}
"""Face and edge (None: the colour of the point), width of the edge, opacity."""
DASHES: Mapping[str, Any] = {"solid": "-", "dash": (0, (5, 3)), "dot": (0, (1, 1.5))}
_SCALE = {"*": 1.6, "P": 1.2, "X": 1.2}  # such markers look smaller than others


def figure(
    charts: Sequence[Chart],
    size_in: tuple[float, float],
    columns: int = 1,
    legend: Mapping[str, Any] | None = None,
    rc: Any = RC,
) -> Figure:
    """Charts in rows of `columns`, with one legend for all; `legend`: arguments of
    `Figure.legend`."""
    with mpl.rc_context(rc):
        drawn = Figure(figsize=size_in, layout="constrained")
        panels = drawn.subplots(-(-len(charts) // columns), columns, squeeze=False).flat
        for axes, chart in zip(panels, charts, strict=True):
            draw_scatter(axes, chart)
        _legend(drawn, charts, **(legend or {}))
        if any((chart.points.label != "").any() for chart in charts):
            drawn.draw_without_rendering()  # labels are placed in the final layout
            for axes, chart in zip(drawn.axes, charts, strict=True):
                _place_labels(axes, chart)
    return drawn


def draw_scatter(axes: Axes, chart: Chart) -> None:
    """Draw everything but the labels and the legend; the title of the y axis stands on top."""
    for name, axis in (("x", chart.x), ("y", chart.y)):
        _scale(axes, name, axis)
    axes.set_xlabel(chart.x.title)
    axes.set_title(chart.y.title, fontweight="bold", pad=10)
    axes.set_title(chart.note, loc="right", color=GREY, pad=10)
    if chart.diagonal is not None:
        ends = np.array([chart.x.low, chart.x.high])
        axes.plot(ends, ends, color=GREY, lw=1, ls=DASHES["dash"], zorder=1)
        if chart.diagonal:
            lower, upper = (1 - chart.diagonal) * ends, (1 + chart.diagonal) * ends
            axes.fill_between(ends, lower, upper, color="#eef2f6", lw=0, zorder=0)
    for number, line in enumerate(one for one in chart.lines if one.upright):
        axes.axvline(line.at, color=line.colour, lw=1, ls=DASHES[line.dash], zorder=1)
        left = line.at > (chart.x.low + chart.x.high) / 2  # which side has more space
        axes.annotate(
            line.text,
            (line.at, 1),
            (-4 if left else 4, -2 - 12 * number),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="right" if left else "left",
            va="top",
            fontsize=0.9 * mpl.rcParams["font.size"],
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    for line in (one for one in chart.lines if not one.upright):
        axes.axhline(line.at, color=line.colour, lw=1, ls=DASHES[line.dash], zorder=1)
    if chart.front:
        axes.plot(*zip(*chart.steps, strict=True), drawstyle="steps-post", zorder=2, **_FRONT)
    for _, own in chart.points[chart.points["join"] != ""].groupby("join", sort=False):
        look = own.iloc[0]
        colour = chart.join_colour or look.colour
        dash = DASHES[look.dash]
        axes.plot(own.x, own.y, color=colour, lw=chart.join_width, ls=dash, zorder=2)
    for row in each(chart.points[chart.points.marker != ""]):
        face, edge, width, alpha = _paint(row)
        axes.scatter(
            row.x,
            row.y,
            s=(row.size_pt * _SCALE.get(row.marker, 1)) ** 2,
            marker=row.marker,
            facecolor=face,
            edgecolor=edge,
            linewidth=width,
            alpha=alpha,
            zorder=row.layer,
        )


_FRONT: Mapping[str, Any] = {"color": INK, "lw": 1, "alpha": 0.55}


def _paint(row: Any) -> tuple[str, str, float, float]:
    face, edge, width, alpha = FILLS[row.fill]
    return face or row.colour, edge or row.colour, width, alpha


def _scale(axes: Axes, name: str, axis: Axis) -> None:
    if axis.log:
        axes.set(**{f"{name}scale": "log"})
    axes.set(**{f"{name}lim": (axis.low, axis.high)})
    if axis.ticks:
        axes.set(**{f"{name}ticks": list(axis.ticks), f"{name}ticklabels": axis.ticks.values()})
        axes.minorticks_off()


def _place_labels(axes: Axes, chart: Chart) -> None:
    named = chart.points[chart.points.label != ""]
    named = named.sort_values("bold", ascending=False, kind="stable")
    labels = [label_placement.Label(row.x, row.y, row.label, row.bold) for row in each(named)]
    shown = chart.points[chart.points.marker != ""]
    along = [
        (x0 + (x1 - x0) * i / 40, y0 + (y1 - y0) * j / 20)
        for (x0, y0), (x1, y1) in itertools.pairwise(chart.steps)
        for i, j in [*((i, 0) for i in range(41)), *((40, j) for j in range(21))]
    ]
    label_placement.place(axes, labels, list(zip(shown.x, shown.y, strict=True)), soft=along)


def _legend(drawn: Figure, charts: Sequence[Chart], ncols: int = 1, **where: Any) -> None:
    """One legend for all charts; with two columns the last heading starts the second."""
    handles = [*{one.get_label(): one for chart in charts for one in _handles(chart)}.values()]
    headings = [number for number, one in enumerate(handles) if one.get_gid() == "heading"]
    if ncols == 2 and len(headings) == 2:
        missing = len(handles) - 2 * headings[1]
        blank = Line2D([], [], ls="", label=" ")
        handles[headings[1] : headings[1]] = [blank] * missing
        handles += [blank] * -missing
    if handles:
        names = drawn.legend(handles=handles, ncols=ncols, **where).get_texts()
        for text, handle in zip(names, handles, strict=True):
            text.set_fontweight("bold" if handle.get_gid() == "heading" else "normal")


def _handles(chart: Chart) -> list[Line2D]:
    """Legend: the chart's keys, its front, and lines that carry no text of their own."""
    found = []
    for row in each(chart.keys):
        face, edge, width, alpha = _paint(row)
        handle = Line2D([], [], ls="", marker=row.marker, label=row.label, alpha=alpha)
        handle.set(markerfacecolor=face, markeredgecolor=edge, markeredgewidth=width)
        handle.set_markersize(row.size_pt * _SCALE.get(row.marker, 1))
        handle.set_gid("heading" if row.bold else None)
        found.append(handle)
    joined = chart.points[chart.points["join"] != ""]
    if chart.join_colour is None and not len(chart.keys):
        for name, own in joined.groupby("join", sort=False):
            look = own.iloc[0]
            found.append(Line2D([], [], color=look.colour, ls=DASHES[look.dash], label=str(name)))
    if chart.front:
        found.append(Line2D([], [], label="Pareto front", **_FRONT))
    found += [
        Line2D([], [], color=line.colour, lw=1, ls=DASHES[line.dash], label=line.text)
        for line in chart.lines
        if not line.upright
    ]
    return found
