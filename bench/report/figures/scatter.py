"""The figure of the suite: accuracy against peak memory, one point a run."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from bench.report import pareto, quality_gate, style
from bench.report.figures import label_placement
from bench.report.load_records import BASELINE

GIB = 2**30
METER_NAMES = {"allocated_bytes": "tensors alive", "nvml_bytes": "seen by the card"}
_BOLD: Any = {"weight": "bold", "size": 9}
LEGEND_ROWS = 27
"""As many as stand beside a panel; more take a second column."""
_AREAS = {"*": 190, "P": 110, "X": 110}  # as large to the eye as the others' 75


_Place = tuple[float, float]
"""Bytes, per cent."""


@dataclass(frozen=True)
class _Point:
    run: str
    x: float
    """Bytes."""
    y: float
    """Per cent."""
    network: str
    strategy: str


def accuracy_memory(frame: pd.DataFrame, meter: str, where: str) -> Figure:
    """mIoU against peak memory, one point a run, one panel a data set.

    Args:
        frame: `table.runs`.
        meter: the column of the memory axis.
        where: the device in words, for the axis.
    """
    datasets = list(dict.fromkeys(frame.dataset))
    with mpl.rc_context(style.RC):
        figure = Figure(figsize=(9, 5.2 * max(1, len(datasets))), layout="constrained")
        panels = figure.subplots(max(1, len(datasets)), squeeze=False)[:, 0]
        to_label = []
        for axes, name in zip(panels, datasets, strict=False):
            to_label.append(_panel(axes, frame[frame.dataset == name], meter))
            axes.set_title(f"mIoU on {name} (test), %", fontweight="bold", pad=10)
            axes.set_title("up and to the left is better  ↖", loc="right", color=style.GREY)
            axes.set_xlabel(f"peak memory ({METER_NAMES.get(meter, meter)}), {where}")
        _legend(figure, frame)
        figure.draw_without_rendering()  # lays out: only now has every point its place
        for axes, (named, points, line) in zip(panels, to_label, strict=False):
            label_placement.place(axes, named, points, soft=line)
    return figure


def _panel(
    axes: Axes, frame: pd.DataFrame, meter: str
) -> tuple[list[label_placement.Label], list[_Place], list[_Place]]:
    """One data set; returns its labels, and where its points and its front are."""
    trained = frame[frame.network != BASELINE]
    floor = quality_gate.baseline_miou(frame)
    points = [
        _Point(str(row.run), float(row[meter]), 100 * float(row.miou), row.network, row.strategy)
        for _, row in trained.dropna(subset=["miou", meter]).iterrows()
    ]
    lost = trained[trained[meter].isna() & (trained.status == "oom")]
    rooms = {float(room) for room in lost.room_bytes.dropna()}
    heights = [100 * float(v) for v in frame.miou.dropna()]
    low, high = (min(heights), max(heights)) if heights else (0.0, 100.0)
    pad = 0.1 * (high - low) or 5.0
    axes.set_ylim(max(0.0, low - pad), min(100.0, high + pad))
    known = [point.x for point in points]
    edge, middle = _memory_axis(axes, [*known, *rooms], strip=bool(lost.room_bytes.isna().any()))
    for room in rooms:
        _room_line(axes, room)
    if floor is not None:
        axes.axhline(100 * floor, zorder=1, **_FLOOR_LINE)
    if points:
        axes.axhline(quality_gate.SHARE * max(point.y for point in points), zorder=1, **_GATE_LINE)

    by_name = {point.run: point for point in points}
    best = [by_name[run] for run in pareto.front(trained, meter, floor)]
    steps = [(point.x, point.y) for point in best]
    if steps:
        steps.append((edge, steps[-1][1]))
        axes.plot(*zip(*steps, strict=True), drawstyle="steps-post", color=style.INK, lw=1,
                  alpha=0.55, zorder=2)  # fmt: skip
    for point in points:
        _dot(axes, point, strong=point in best)
    bottom = axes.get_ylim()[0] + 0.3 * pad
    for _, row in lost.iterrows():
        scored = not pd.isna(row.miou)
        name = str(row.run) if scored else f"{row.run} (no mIoU)"
        y = 100 * float(row.miou) if scored else bottom
        x = middle if pd.isna(row.room_bytes) else float(row.room_bytes)
        points.append(_Point(name, x, y, row.network, row.strategy))
        _dot(axes, points[-1], strong=True, hollow=True)
    faded = [point for point in points if point not in best]
    return (
        [
            label_placement.Label(point.x, point.y, point.run, bold=point in best)
            for point in best + faded
        ],
        [(point.x, point.y) for point in points],
        _along(steps),
    )


def _dot(axes: Axes, point: _Point, strong: bool, hollow: bool = False) -> None:
    colour, marker = style.colours([point.network]), style.markers([point.strategy])
    paint = colour[point.network]
    axes.scatter(
        point.x,
        point.y,
        s=_AREAS.get(marker[point.strategy], 75),
        marker=marker[point.strategy],
        facecolor="white" if hollow else paint,
        edgecolor=paint if hollow else style.INK if strong else "white",
        linewidth=1.5 if hollow else 0.9 if strong else 0.6,
        alpha=1 if strong else 0.55,
        zorder=4 if strong else 3,
    )


_FLOOR_LINE: dict[str, Any] = {"color": style.GREY, "lw": 1, "ls": (0, (5, 3))}
_GATE_LINE: dict[str, Any] = {"color": style.GREY, "lw": 0.9, "ls": ":"}
"""Below it, accuracy is too little for memory to count."""


def _room_line(axes: Axes, room: float) -> None:
    """All that the device has: a run that ran out stands on it."""
    axes.axvline(room, color=style.GREY, lw=0.8, zorder=0)
    axes.annotate(
        f"all of the device: {style.size(room)}",
        (room, 0.985),
        (-4, 0),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        rotation=90,
        ha="right",
        va="top",
        fontsize=8,
        color=style.GREY,
    )


def _memory_axis(axes: Axes, values: list[float], strip: bool) -> tuple[float, float]:
    """Scale and ticks of the memory axis; with `strip`, room at its end for what ran out of memory.

    Returns:
        where the measured range ends, and the middle of the strip, in bytes.
    """
    low, high = (min(values), max(values)) if values else (2.0**20, GIB)
    logarithmic = high > 3 * low
    if logarithmic:
        axes.set_xscale("log", base=2)
        left, right = memory_range(values)
        edge, end = right, right * (right / left) ** 0.16
        middle = math.sqrt(edge * end)
    else:
        margin = 0.08 * (high - low) or 0.1 * high
        left, right = low - margin, high + margin
        edge, end = right, right + 0.16 * (right - left)
        middle = (edge + end) / 2
    axes.set_xlim(left, end if strip else right)
    axes.xaxis.set_major_locator(FixedLocator(byte_ticks(left, right, logarithmic)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_size(value)))
    if not strip:
        return edge, edge
    axes.axvspan(edge, end, color="#f4f0ec", zorder=0, lw=0)
    axes.text(
        middle,
        0.985,
        "out of memory",
        transform=axes.get_xaxis_transform(),
        fontsize=8,
        ha="center",
        va="top",
        color=style.GREY,
    )
    return edge, middle


def memory_range(values: Sequence[float]) -> tuple[float, float]:
    """The ends of a logarithmic axis with room beside the values; some range where there are
    none."""
    low, high = (min(values), max(values)) if len(values) else (2.0**20, float(GIB))
    return low / 1.25, high * 1.25


def byte_ticks(left: float, right: float, logarithmic: bool) -> list[float]:
    """Round numbers of MiB or GiB between two sizes."""
    if not logarithmic:
        unit = GIB if right > 4 * GIB else 2**20
        ticks = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(left / unit, right / unit)
        return [float(t) * unit for t in ticks if left <= t * unit <= right]
    powers = range(math.floor(math.log2(left)) - 1, math.ceil(math.log2(right)) + 1)
    whole = [2.0**k for k in powers]
    ticks = [t for t in whole if left <= t <= right]
    if len(ticks) < 5:
        ticks = [t for k in whole for t in (k, 1.5 * k) if left <= t <= right]
    return ticks


def short_size(value: float) -> str:
    """Bytes for an axis, whose ticks are round numbers."""
    whole = value >= GIB and value * 4 % GIB == 0
    return f"{value / GIB:g} GiB" if whole else f"{value / 2**20:g} MiB"


def _along(steps: Sequence[_Place]) -> list[_Place]:
    """Points along a front, close enough that a label cannot slip between them."""
    found: list[_Place] = []
    for (x0, y0), (x1, y1) in itertools.pairwise(steps):
        found += [(x0 * (x1 / x0) ** (i / 40), y0) for i in range(41)]
        found += [(x1, y0 + (y1 - y0) * i / 20) for i in range(21)]
    return found


def _legend(figure: Figure, frame: pd.DataFrame) -> None:
    # What was not evaluated is in no panel, but for what ran out of memory.
    drawn = frame[(frame.network != BASELINE) & (frame.miou.notna() | (frame.status == "oom"))]
    networks, strategies = style.colours(drawn.network), style.markers(drawn.strategy)
    # The lines are named here: inside the axes are the runs' names.
    handles = [
        _title("network"),
        *(_key("o", colour, style.network_name(name)) for name, colour in networks.items()),
        _title("strategy"),
        *(_key(marker, style.GREY, name) for name, marker in strategies.items()),
        Line2D([], [], color=style.INK, alpha=0.55, lw=1, label="Pareto front"),
        Line2D([], [], label=f"{100 * quality_gate.SHARE:.0f} % of the best", **_GATE_LINE),
    ]
    if quality_gate.baseline_miou(frame) is not None:
        handles.append(Line2D([], [], label="class-mean colour", **_FLOOR_LINE))
    columns = -(-len(handles) // LEGEND_ROWS)
    legend = figure.legend(handles=handles, loc="outside right upper", ncols=columns)
    for text in legend.get_texts():
        if text.get_text() in ("network", "strategy"):
            text.set_fontproperties(FontProperties(**_BOLD))


def _title(text: str) -> Line2D:
    return Line2D([], [], ls="", label=text)


def _key(marker: str, colour: str, label: str) -> Line2D:
    size = math.sqrt(_AREAS.get(marker, 64))
    return Line2D(
        [], [], ls="", marker=marker, color=colour, markeredgecolor="white", markersize=size,
        label=label,
    )  # fmt: skip
