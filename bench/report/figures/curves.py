"""Curves of trainings and of single runs: loss by step, memory over time."""

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bench.report.figures import interactive, palette
from bench.report.figures.chart import MIB
from bench.report.figures.interactive import heading, line


def losses(trained: Mapping[str, Any]) -> pd.DataFrame:
    """Loss by optimiser step, from the values of a record of `train`: columns phase, x, y, its
    running `mean` within the phase and `colour`; no rows for a model that trains in one step."""
    found = trained.get("loss", [])
    frame = pd.DataFrame(found if len(found) > 1 else [], columns=["phase", "step", "y"])
    frame = frame.astype({"phase": str, "y": float}).assign(x=range(len(frame)))
    phases = frame.groupby("phase", sort=False)
    return frame.assign(
        mean=phases.y.transform(
            lambda y: y.rolling(max(1, len(y) // 10), min_periods=1, center=True).mean()
        ),
        colour=phases.ngroup().map(lambda number: palette.PHASES[number % len(palette.PHASES)]),
    )


def training(trained: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Loss by step, one panel a model, phases side by side."""
    curves = {name: losses(one) for name, one in trained.items()}
    curves = {name: frame for name, frame in curves.items() if len(frame)}
    with mpl.rc_context(palette.RC):
        lines = -(-len(curves) // 3) or 1
        drawn = Figure(figsize=(9, 0.3 + 1.75 * lines), layout="constrained")
        for number, (name, frame) in enumerate(curves.items(), 1):
            _draw(drawn.add_subplot(lines, 3, number), name, frame)
        if curves:
            drawn.supxlabel("step", fontsize=9)
            drawn.supylabel("loss", fontsize=9)
        else:
            drawn.text(0.5, 0.5, "no training has been recorded", ha="center", color=palette.GREY)
    return drawn


def _draw(axes: Axes, title: str, frame: pd.DataFrame) -> None:
    """Draw `losses` of one model, with the names of its phases if there are several."""
    for number, (phase, own) in enumerate(frame.groupby("phase", sort=False)):
        colour = own.colour.iloc[0]
        axes.plot(own.x, own.y, color=colour, lw=0.7, alpha=0.35)
        axes.plot(own.x, own["mean"], color=colour, lw=1.6)
        if number:
            axes.axvline(own.x.iloc[0] - 0.5, color=palette.PALE, lw=1)
        name = str(phase).replace("-to-", "→") if frame.phase.nunique() > 1 else ""
        look: dict[str, Any] = {"color": colour, "fontsize": 6.5, "ha": "center", "va": "bottom"}
        axes.text(own.x.mean(), 1.0, name, transform=axes.get_xaxis_transform(), **look)
    axes.set_title(title, fontsize=8, fontweight="bold", pad=15)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.tick_params(labelsize=7)


def training_curves(trained: Mapping[str, Any]) -> interactive.Figure | None:
    """Loss by optimiser step with its running mean, and mIoU on val if the training evaluated it;
    None for a model that trains in one step."""
    frame = losses(trained)
    if frame.empty:
        return None
    traces = []
    for phase, own in frame.groupby("phase", sort=False):
        colour = own.colour.iloc[0]
        each = line(f"{phase}: loss", own.x, own.y, color=colour, width=0.8)
        mean = line(f"{phase}: running mean of loss", own.x, own["mean"], color=colour, width=2.2)
        hidden = {"opacity": 0.4, "showlegend": False, "hoverinfo": "skip", "legendgroup": phase}
        traces += [each | hidden, mean | {"legendgroup": phase}]
    layout = {"xaxis": heading("step"), "yaxis": {"rangemode": "tozero", **heading("loss")}}
    if validations := trained.get("validations", []):
        starts = frame.groupby("phase").x.min()
        steps = [int(starts[phase]) + step for phase, step, _ in validations]
        val = line(
            "mIoU on val", steps, [100 * miou for *_, miou in validations], color=palette.INK
        )
        traces.append(val | {"mode": "lines+markers", "yaxis": "y2", "marker": {"size": 5}})
        right = {"overlaying": "y", "side": "right", "showgrid": False, "rangemode": "tozero"}
        layout["yaxis2"] = right | heading("mIoU on val, %")
    return {"data": traces, "layout": layout}


def memory_timeline(timeline: Mapping[str, Any], peak: str) -> interactive.Figure:
    """Bytes allocated over time, stacked by category, with the peak marked.

    Args:
        timeline: `bench.memory.prediction.timeline`.
        peak: the operator and module at the peak.
    """
    held = pd.DataFrame(timeline["bytes"], index=timeline["events"]) / MIB
    traces = [
        line(
            name,
            held.index,
            held[name],
            color=palette.CATEGORIES.get(name, palette.GREY),
            shape="hv",
        )
        | {"stackgroup": "allocated", "hovertemplate": f"{name} %{{y:.1f}} MiB<extra></extra>"}
        for name in sorted(map(str, held), key=[*palette.CATEGORIES, *held].index)
    ]
    total = held.sum(axis=1)
    at, top = held.index.tolist()[int(total.argmax())], round(float(total.max()), 3)
    mark = {"symbol": "triangle-down", "size": 12, "color": palette.INK}
    hover = f"peak {top:.1f} MiB: {peak}<extra></extra>"
    found = {"mode": "markers", "marker": mark, "hovertemplate": hover}
    y = {"rangemode": "tozero", "ticksuffix": " MiB", **heading("allocated tensors")}
    return {
        "data": [*traces, line("peak", [at], [top]) | found],
        "layout": {"xaxis": heading("allocations and deallocations, in order"), "yaxis": y},
    }
