"""Figures of trainings and of single runs: loss by step, IoU by class, memory over time."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bench.record import Record
from bench.report import style
from bench.report.evaluations import ONE_VIEW, Group
from bench.report.figures import palette, plotly_layout, scatter
from bench.report.figures.chart import (
    MIB,
    PAPER_BYTES,
    Axis,
    Chart,
    Line,
    marks,
    memory_axis,
    rows_axis,
)
from bench.report.figures.plotly_layout import heading
from bench.report.figures.plotly_traces import plotly_scatter

QUANTITIES = {
    "device_bytes": ("device memory, tensors", "B"),
    "host_bytes": ("host memory, tensors", "B"),
    "flops": ("operations", "FLOP"),
}
"""Columns of `growth.points`: (heading, unit)."""
_CATEGORIES = {
    "weights": palette.BLUE,
    "inputs": "#56b4e9",
    "activations": "#e69f00",
    "temporaries": palette.ERROR,
    "gradients": "#009e73",
    "optimiser state": "#cc79a7",
}


def losses(trained: Record | None) -> pd.DataFrame:
    """Loss by optimiser step: columns phase, x, y, its running `mean` within the phase and
    `colour`; no rows for a model that trains in one step."""
    found = trained.values.get("loss", []) if trained else []
    frame = pd.DataFrame(found if len(found) > 1 else [], columns=["phase", "step", "y"])
    frame = frame.astype({"phase": str, "y": float}).assign(x=range(len(frame)))
    phases = frame.groupby("phase", sort=False)
    means = [
        own.y.rolling(max(1, len(own) // 10), min_periods=1, center=True).mean()
        for _, own in phases
    ]
    colours = phases.ngroup().map(lambda number: palette.PHASES[number % len(palette.PHASES)])
    return frame.assign(mean=pd.concat(means) if means else 0.0, colour=colours)


def training(records: Mapping[str, Record | None]) -> Figure:
    """Loss by step, one panel a model, phases side by side."""
    curves = {name: losses(record) for name, record in records.items()}
    curves = {name: frame for name, frame in curves.items() if len(frame)}
    with mpl.rc_context(palette.RC):
        lines = -(-len(curves) // 3) or 1
        drawn = Figure(figsize=(9, 0.3 + 1.75 * lines), layout="constrained")
        for number, (name, frame) in enumerate(curves.items(), 1):
            draw_lines(drawn.add_subplot(lines, 3, number), name, frame)
        if curves:
            drawn.supxlabel("step", fontsize=9)
            drawn.supylabel("loss", fontsize=9)
        else:
            drawn.text(0.5, 0.5, "no training has been recorded", ha="center", color=palette.GREY)
    return drawn


def draw_lines(axes: Axes, title: str, frame: pd.DataFrame) -> None:
    """Draw `losses` of one model, with the names of its phases if there are several."""
    for number, (phase, own) in enumerate(frame.groupby("phase", sort=False)):
        colour = own.colour.iloc[0]
        axes.plot(own.x, own.y, color=colour, lw=0.7, alpha=0.35)
        axes.plot(own.x, own["mean"], color=colour, lw=1.6)
        if number:
            axes.axvline(own.x.iloc[0] - 0.5, color=palette.PALE, lw=1)
        axes.text(
            own.x.mean(),
            1.0,
            str(phase).replace("-to-", "→") if frame.phase.nunique() > 1 else "",
            color=colour,
            fontsize=6.5,
            ha="center",
            va="bottom",
            transform=axes.get_xaxis_transform(),
        )
    axes.set_title(title, fontsize=8, fontweight="bold", pad=15)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.tick_params(labelsize=7)


def growth(frame: pd.DataFrame) -> Figure:
    """Memory and operations over the side of a square image, one panel a quantity; a hollow point
    is extrapolated.

    Args:
        frame: `growth.points`.
    """
    runs = list(dict.fromkeys(frame.run))
    colours = (*palette.PHASES, "#e69f00", "#56b4e9", "#332288", "#882255", "#117733", "#8c6d31")
    looks = {
        run: (colours[number % 10], list(scatter.DASHES)[number % 3])
        for number, run in enumerate(runs)
    }
    sides = {float(side): f"{side / 1024:g}k" for side in sorted(set(frame.side_px))}
    x = Axis("side of a square image, px", 0.9 * min(sides), 1.1 * max(sides), True, sides)
    charts = []
    for name, (title, unit) in QUANTITIES.items():
        points = marks(
            {"x": frame.side_px, "y": frame[name].astype(float), "join": frame.run},
            colour=frame.run.map({run: colour for run, (colour, _) in looks.items()}),
            dash=frame.run.map({run: dash for run, (_, dash) in looks.items()}),
            fill=frame.worked_out.map({True: "solid", False: "hollow"}),
            size_pt=4.0,
        )
        y = memory_axis(title, points.y, log=True)
        if unit != "B":
            ticks = [10.0**k for k in range(5, 22) if y.low <= 10**k <= y.high]
            y = replace(y, ticks={tick: f"{tick / 1e12:g} T" for tick in ticks})
        lines = (Line(PAPER_BYTES, "2 GiB, the limit of the paper", colour=palette.ERROR),)
        shown = lines if name == "device_bytes" else ()
        charts.append(Chart(x, y, points, marks([]), shown, join_width=1.7))
    return scatter.figure(charts, (12, 4.9), 3, legend={"loc": "outside lower center", "ncols": 4})


def seeds(found: Sequence[Group], limits: Mapping[str, float]) -> Figure:
    """A point a seed, one row a group, with the mean; ceilings of the data set as upright lines."""
    groups = list(reversed(found))
    shapes = palette.markers(group.strategy for group in groups)
    rows = []
    for y, group in enumerate(groups):
        own = group.feature_sharing or group.strategy in ONE_VIEW
        look = {"y": y, "join": group.name, "colour": palette.ERROR if own else palette.GREY}
        rows.append({**look, "x": 0.0, "marker": ""})
        shape = shapes[group.strategy]
        rows += [{**look, "x": 100 * miou, "marker": shape} for miou in sorted(group.mious)]
        rows[-1] |= {"label": style.percent(group.mean), "bold": True}
    names = [group.name + ("" if group.feature_sharing else "\n(no sharing)") for group in groups]
    title = "Several seeds, and the ceilings of the data set" if limits else "Several seeds"
    chart = Chart(
        Axis("mIoU on test, %", 0, 100),
        rows_axis(title, names, 0.45 * len(limits)),
        marks(pd.DataFrame(rows).fillna({"label": "", "bold": False}), size_pt=7.2),
        marks([]),
        tuple(
            Line(100 * limit, f"{name} {style.percent(limit)}", upright=True, colour=palette.INK)
            for name, limit in sorted(limits.items(), key=lambda pair: -pair[1])
        ),
        join_colour=palette.PALE,
        join_width=7,
    )
    return scatter.figure([chart], (9, 1.5 + 0.42 * max(3, len(groups))))


def training_curves(trained: Record | None) -> plotly_layout.Figure | None:
    """Loss by optimiser step with its running mean, and mIoU on val if the training evaluated it;
    None for a model that trains in one step."""
    frame = losses(trained)
    if trained is None or frame.empty:
        return None
    traces = []
    for phase, own in frame.groupby("phase", sort=False):
        colour = own.colour.iloc[0]
        each = _line(f"{phase}: loss", own.x, own.y, color=colour, width=0.8)
        mean = _line(f"{phase}: running mean of loss", own.x, own["mean"], color=colour, width=2.2)
        hidden = {"opacity": 0.4, "showlegend": False, "hoverinfo": "skip", "legendgroup": phase}
        traces += [each | hidden, mean | {"legendgroup": phase}]
    more = {}
    looks = trained.values.get("looks", [])
    if looks:
        starts = frame.groupby("phase").x.min()
        steps = [int(starts[phase]) + step for phase, step, _ in looks]
        val = _line("mIoU on val", steps, [100 * miou for *_, miou in looks], color=palette.INK)
        traces.append(val | {"mode": "lines+markers", "yaxis": "y2", "marker": {"size": 5}})
        right = {"overlaying": "y", "side": "right", "showgrid": False, "rangemode": "tozero"}
        more["yaxis2"] = {**right, "automargin": True, **heading("mIoU on val, %")}
    y = {"rangemode": "tozero", **heading("loss")}
    return {"data": traces, "layout": plotly_layout.layout(heading("step"), y, **more)}


def class_intervals(
    names: Sequence[str], intervals: Mapping[str, tuple[float, float, float]]
) -> plotly_layout.Figure:
    """A point a class with its interval.

    Args:
        names: of classes, the first one on top.
        intervals: IoU, its lower and its upper end, 0..1; a class without an IoU has none.
    """
    known = [name for name in names if name in intervals][::-1]
    points = 100 * pd.DataFrame([intervals[name] for name in known], columns=["x", "low", "high"])
    texts = [name.replace("_", " ") for name in known]
    hover = [f"{text}: {x:.1f} %" for text, x in zip(texts, points.x, strict=True)]
    return plotly_scatter(
        Chart(
            Axis("IoU on test, %", 0, 100),
            Axis(
                "",
                -0.7,
                len(known) - 0.3,
                ticks=dict(zip(points.index.astype(float), texts, strict=True)),
            ),
            marks(points, y=points.index, colour=palette.BLUE, hover=hover),
            marks([]),
            interval="x",
        )
    )


def memory_timeline(course: Mapping[str, Any], peak: str) -> plotly_layout.Figure:
    """Bytes allocated over time, stacked by category, with the peak marked.

    Args:
        course: `bench.memory.timeline`.
        peak: the operator and module at the peak.
    """
    held = pd.DataFrame(course["bytes"], index=course["events"]) / MIB
    order = sorted(map(str, held), key=[*_CATEGORIES, *held].index)
    traces = [
        _line(name, held.index, held[name], color=_CATEGORIES.get(name, palette.GREY), shape="hv")
        | {"stackgroup": "allocated", "hovertemplate": f"{name} %{{y:.1f}} MiB<extra></extra>"}
        for name in order
    ]
    total = held.sum(axis=1)
    at = held.index.tolist()[int(total.argmax())]
    top = round(float(total.max()), 3)
    mark = {"symbol": "triangle-down", "size": 12, "color": palette.INK}
    hover = f"peak {top:.1f} MiB: {peak}<extra></extra>"
    traces.append(
        _line("peak", [at], [top]) | {"mode": "markers", "marker": mark, "hovertemplate": hover}
    )
    y = {"rangemode": "tozero", "ticksuffix": " MiB", **heading("allocated tensors")}
    x = heading("allocations and deallocations, in order")
    return {"data": traces, "layout": plotly_layout.layout(x, y)}


def _line(name: str, x: Iterable[Any], y: Iterable[float], **line: Any) -> dict[str, Any]:
    """A line with five significant digits, so that pages stay small."""
    values = [float(f"{value:.5g}") for value in y]
    return {"type": "scatter", "mode": "lines", "name": name, "x": [*x], "y": values, "line": line}
