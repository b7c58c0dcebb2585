"""Charts as static figures, drawn with matplotlib, and the files of figures."""

import io
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from numpy.typing import ArrayLike, NDArray

from bench.files import write_bytes
from bench.parallel import parallel_map, threads
from bench.report.figures.chart import Axis, Chart, each
from bench.report.figures.palette import FILLS, GREY, INK, RC

Drawing = tuple[str, Callable[[], Figure], Sequence[str]]
"""The name of a figure, what draws it, and the kinds of its files: svg, png, pdf."""
DASHES: Mapping[str, Any] = {"solid": "-", "dash": (0, (5, 3)), "dot": (0, (1, 1.5))}
_SCALE = {"*": 1.6, "P": 1.2, "X": 1.2}  # such markers look smaller than others
_FRONT: Mapping[str, Any] = {"color": INK, "lw": 1, "alpha": 0.55}
_PNG_DPI = 200
_NO_DATES: Mapping[str, dict[str, None]] = {
    "svg": dict.fromkeys(("Date", "Creator", "Format", "Type")),
    "png": {"Software": None},
    "pdf": dict.fromkeys(("CreationDate", "Creator", "Producer")),
}
# Places of a label around its point, in degrees, the right first, and in points.
_ANGLES = sorted(np.arange(0, 360, 7.5), key=lambda angle: (angle % 90 != 0, angle % 180 != 0))
_RADII_PT = np.geomspace(9, 220, 20)
_MARKER_PT = 6.0
Boxes = NDArray[np.float64]
"""(N, 4): left, bottom, right, top in pixels."""


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
            _draw(axes, chart)
        _legend(drawn, charts, **(legend or {}))
        if any((chart.points.label != "").any() for chart in charts):
            drawn.draw_without_rendering()  # labels are placed in the final layout
            for axes, chart in zip(drawn.axes, charts, strict=True):
                _label(axes, chart)
    return drawn


def labels(chart: Chart, size_px: tuple[int, int], font_px: int) -> list[Annotation]:
    """The labels of a chart, placed in axes of this size (W, H); their offsets are in pixels."""
    with mpl.rc_context(RC | {"font.size": font_px + 1}):
        drawn = Figure(figsize=(size_px[0] / 72, size_px[1] / 72), dpi=72)
        axes = drawn.add_axes((0, 0, 1, 1))
        for name, axis in ("x", chart.x), ("y", chart.y):
            _scale(axes, name, replace(axis, ticks={}))  # which would take most of the time
        _label(axes, chart)
        return [one for one in axes.texts if isinstance(one, Annotation)]


def _label(axes: Axes, chart: Chart) -> None:
    shown = chart.points[chart.points.marker != ""]
    place_labels(axes, chart.points, shown[["x", "y"]], _lines(chart))


def place_labels(
    axes: Axes, points: pd.DataFrame, markers: ArrayLike, lines: Sequence[ArrayLike] = ()
) -> None:
    """Draw each label at the free place nearest to its point, greedily, bold ones first. A leader line
    joins it to its point where that is far, or another mark is near; none crosses a label or a mark.

    The figure must have its final layout: call `Figure.draw_without_rendering` first.

    Args:
        points: `marks`; those without a label are left out.
        markers: places that no label may cover, in data coordinates.
        lines: corners (N, 2) of lines that no label should cover, likewise.
    """
    scale, small = axes.figure.dpi / 72, mpl.rcParams["font.size"] - 1  # pixels a point

    def pixels(places: ArrayLike) -> NDArray[np.float64]:
        return np.asarray(axes.transData.transform(np.reshape(places, (-1, 2))))

    written = [text.get_window_extent().extents for text in axes.texts]  # of reference lines
    centres, texts = pixels(markers), np.reshape(written, (-1, 4))
    corners = [pixels(line) for line in lines]
    drawn = np.concatenate([np.empty((2, 0, 2)), *(np.stack([c[:-1], c[1:]]) for c in corners)], 1)
    inner = axes.get_window_extent().padded(-2 * scale).extents
    leaders = np.empty((2, 0, 2))  # from, to
    radii = np.repeat(_RADII_PT, len(_ANGLES))
    angles = np.radians(np.tile(_ANGLES, len(_RADII_PT)))
    directions = np.stack([np.cos(angles), np.sin(angles)], 1)  # (K, 2)
    named = points[points.label != ""].sort_values("bold", ascending=False, kind="stable")
    for row in each(named):
        at = pixels([(row.x, row.y)])
        font: dict[str, Any] = {"fontsize": small, "fontweight": "bold" if row.bold else "normal"}
        text = axes.text(0, 0, row.label, **font)
        half = np.array(text.get_window_extent().size) / 2
        text.remove()
        offsets = (radii[:, None] * scale + half) * directions
        boxes = _boxes(at + offsets, half)
        others = centres[(np.abs(centres - at) > 0.5).any(1)]
        near = np.r_[_boxes(others, _MARKER_PT * scale), texts]
        taken = np.r_[_boxes(centres, _MARKER_PT * scale), texts]
        close = _overlap(boxes, near, 5 * scale).sum(1)  # whose label would it be?
        far = ~_overlap(boxes, _boxes(at, (_MARKER_PT + 9) * scale))[:, 0]
        led = far | (close > 0)
        in_way = np.r_[_boxes(others, 0.7 * _MARKER_PT * scale), texts]
        # Where marks overlap, no leader line can avoid the other one for certain.
        weights = np.full(len(in_way), 1000)
        weights[: len(others)][np.hypot(*(others - at).T) < 1.5 * _MARKER_PT * scale] = 150
        cost = (
            radii
            + 1000 * _overlap(boxes, taken, 2 * scale).sum(1)
            + 3000 * ((boxes[:, :2] < inner[:2]) | (boxes[:, 2:] > inner[2:])).any(1)
            + 1000 * _crossed(leaders[0], leaders[1], boxes).any(0)
            + led * (_crossed(at, at + offsets, in_way) @ weights)
            + 500 * _crossed(drawn[0], drawn[1], boxes).any(0)
            + 15 * close
        )
        best = int(cost.argmin())
        axes.annotate(
            row.label,
            (row.x, row.y),
            tuple(offsets[best] / scale),
            textcoords="offset points",
            ha="center",
            va="center",
            color=INK,
            bbox={"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 0.5},
            arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.6, "shrinkB": 5}
            if led[best]
            else None,
            zorder=6,
            **font,
        )
        texts = np.r_[texts, boxes[best, None]]
        if led[best]:
            leaders = np.concatenate([leaders, [at, at + offsets[best]]], 1)


@contextmanager
def written(drawings: Sequence[Drawing], folder: Path) -> Iterator[None]:
    """Draw figures in other processes while the block runs; their files exist at its end."""
    # An absolute path, for the processes do not start in the current folder.
    tasks = [(folder.resolve(), *one) for one in drawings]
    with threads(1) as pool:
        libraries = ("matplotlib.figure", "pandas")
        drawn = pool.submit(parallel_map, _write, tasks, "report", "figure", preload=libraries)
        yield
        drawn.result()


def _write(folder: Path, name: str, draw: Callable[[], Figure], kinds: Sequence[str]) -> None:
    """The same figure gives the same bytes."""
    drawn = draw()
    with mpl.rc_context(RC):
        drawn.draw_without_rendering()
        drawn.set_layout_engine(None)  # the layout is done; each file would repeat it
        for kind in kinds:
            buffer = io.BytesIO()
            drawn.savefig(buffer, format=kind, dpi=_PNG_DPI, metadata=_NO_DATES[kind])
            write_bytes(folder / f"{name}.{kind}", buffer.getvalue())


def _draw(axes: Axes, chart: Chart) -> None:
    """Draw everything but the labels and the legend; the title of the y axis stands on top."""
    _scale(axes, "x", chart.x)
    _scale(axes, "y", chart.y)
    axes.set_xlabel(chart.x.title)
    axes.set_title(chart.y.title, fontweight="bold", pad=10)
    axes.set_title(chart.note, loc="right", color=GREY, pad=10)
    if chart.diagonal is not None:
        ends = np.array([chart.x.low, chart.x.high])
        axes.plot(ends, ends, color=GREY, lw=1, ls=DASHES["dash"], zorder=1)
        if chart.diagonal:
            lower, upper = (1 - chart.diagonal) * ends, (1 + chart.diagonal) * ends
            axes.fill_between(ends, lower, upper, color="#eef2f6", lw=0, zorder=0)
    upright = sorted([chart.x.low, chart.x.high, *(one.at for one in chart.lines if one.upright)])
    for number, line in enumerate(chart.lines):
        draw = axes.axvline if line.upright else axes.axhline
        draw(line.at, color=line.colour, lw=1, ls=DASHES[line.dash], zorder=1)
        if line.upright:
            place = upright.index(line.at)
            left = 2 * line.at > upright[place - 1] + upright[place + 1]  # which has more space
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
    if chart.steps:
        axes.plot(*zip(*chart.steps, strict=True), drawstyle="steps-post", zorder=2, **_FRONT)
    for _, own in _joined(chart):
        colour = chart.join_colour or own.colour.iloc[0]
        dash = DASHES[own.dash.iloc[0]]
        axes.plot(own.x, own.y, color=colour, lw=chart.join_width, ls=dash, zorder=2)
    bars = chart.points.dropna(subset=["low", "high"])
    if len(bars):
        colours = bars.colour.tolist()
        axes.vlines(bars.x, bars.low, bars.high, colours, lw=1, alpha=0.35, zorder=2)
    for row in each(chart.points[chart.points.marker != ""]):
        face, edge, width, alpha, size = _paint(row)
        look: Any = {"facecolor": face, "edgecolor": edge, "linewidth": width, "alpha": alpha}
        axes.scatter(row.x, row.y, size**2, marker=row.marker, zorder=row.layer, **look)


def _joined(chart: Chart) -> Any:
    """(name, points) of each joining line."""
    return chart.points[chart.points["join"] != ""].groupby("join", sort=False)


def _paint(row: Any) -> tuple[str, str, float, float, float]:
    """Face, edge, width of the edge, opacity and size in points of a marker."""
    face, edge, width, alpha = FILLS[row.fill]
    size = row.size_pt * _SCALE.get(row.marker, 1)
    return face or row.colour, edge or row.colour, width, alpha, size


def _scale(axes: Axes, name: str, axis: Axis) -> None:
    if axis.log:
        axes.set(**{f"{name}scale": "log"})
    axes.set(**{f"{name}lim": (axis.low, axis.high)})
    if axis.ticks:
        axes.set(**{f"{name}ticks": list(axis.ticks), f"{name}ticklabels": axis.ticks.values()})
        axes.minorticks_off()


def _lines(chart: Chart) -> list[Any]:
    """Corners (N, 2) of every straight line of a chart."""
    stairs = [
        corner
        for (x, y), (x1, y1) in itertools.pairwise(chart.steps)
        for corner in ((x, y), (x1, y))
    ]
    references = [
        [(one.at, chart.y.low), (one.at, chart.y.high)]
        if one.upright
        else [(chart.x.low, one.at), (chart.x.high, one.at)]
        for one in chart.lines
    ]
    bars = [
        [(one.x, one.low), (one.x, one.high)]
        for one in each(chart.points.dropna(subset=["low", "high"]))
    ]
    joins = [own[["x", "y"]] for _, own in _joined(chart)]
    return [stairs, *references, *bars, *joins]


def _boxes(centres: NDArray[np.float64], half: Any) -> Boxes:
    return np.concatenate([centres - half, centres + half], 1)


def _overlap(a: Boxes, b: Boxes, pad: float = 0.0) -> NDArray[np.bool_]:
    """Whether box i of `a`, enlarged by `pad`, meets box j of `b`: (len(a), len(b))."""
    left, bottom, right, top = a.T[..., None] + pad * np.array([[[-1]], [[-1]], [[1]], [[1]]])
    meet = (left <= b[:, 2]) & (bottom <= b[:, 3]) & (right >= b[:, 0]) & (top >= b[:, 1])
    return np.asarray(meet)


def _crossed(start: ArrayLike, end: ArrayLike, boxes: Boxes) -> NDArray[np.bool_]:
    """Whether the straight line i from `start` to `end`, (N, 2) each, meets box j: (N, len(boxes))."""
    way = np.asarray(end) - start
    way = np.where(way == 0, 1e-9, way)
    # Shares of the way: one array an axis, which NumPy reads far faster than a last axis of two.
    inside = []
    for axis in (0, 1):
        first, length = np.asarray(start)[:, None, axis], way[:, None, axis]
        ends = (boxes[:, axis] - first) / length, (boxes[:, axis + 2] - first) / length
        inside.append((np.minimum(*ends), np.maximum(*ends)))
    enters = np.maximum(inside[0][0], inside[1][0])
    leaves = np.minimum(inside[0][1], inside[1][1])
    return np.asarray((enters <= leaves) & (leaves >= 0) & (enters <= 1))


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
        face, edge, width, alpha, size = _paint(row)
        handle = Line2D([], [], ls="", marker=row.marker, label=row.label, alpha=alpha)
        handle.set(markerfacecolor=face, markeredgecolor=edge, markeredgewidth=width)
        handle.set(markersize=size, gid="heading" if row.bold else None)
        found.append(handle)
    if chart.join_colour is None and not len(chart.keys):
        for name, own in _joined(chart):
            look = own.iloc[0]
            found.append(Line2D([], [], color=look.colour, ls=DASHES[look.dash], label=str(name)))
    if chart.steps:
        found.append(Line2D([], [], label="Pareto front", **_FRONT))
    return found + [
        Line2D([], [], color=line.colour, lw=1, ls=DASHES[line.dash], label=line.text)
        for line in chart.lines
        if not line.upright
    ]
