"""Curves of single runs: loss by step, memory over time, latency by memory."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from bench.report.figures import interactive, palette, static
from bench.report.figures.chart import MIB, Axis, Chart, keys, marks, memory_axis
from bench.report.figures.interactive import heading, line


def training_curves(trained: Mapping[str, Any]) -> interactive.Figure | None:
    """Loss by optimiser step with its running mean within a phase, and mIoU on val if the training
    evaluated it; None for a model that trains in one step.

    Args:
        trained: values of a record of `train`.
    """
    found = trained.get("loss", [])
    if len(found) < 2:
        return None
    frame = pd.DataFrame(found, columns=["phase", "step", "y"])
    traces, starts = [], {}
    for number, (phase, own) in enumerate(frame.groupby("phase", sort=False)):
        y = own.y.astype(float)
        colour, starts[phase] = palette.PHASES[number % len(palette.PHASES)], int(own.index[0])
        smooth = y.rolling(max(1, len(y) // 10), min_periods=1, center=True).mean()
        each = line(f"{phase}: loss", own.index, y, color=colour, width=0.8)
        mean = line(f"{phase}: running mean of loss", own.index, smooth, color=colour, width=2.2)
        hidden = {"opacity": 0.4, "showlegend": False, "hoverinfo": "skip", "legendgroup": phase}
        traces += [each | hidden, mean | {"legendgroup": phase}]
    layout = {"xaxis": heading("step"), "yaxis": {"rangemode": "tozero", **heading("loss")}}
    if validations := trained.get("validations", []):
        steps = [starts[phase] + step for phase, step, _ in validations]
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


def sub_batch(frame: pd.DataFrame) -> Figure:
    """Latency against memory, one line a run, a point a number of patches at once; hollow: as
    predicted.

    Args:
        frame: `memory.sub_batch_section`.
    """
    number = pd.Series(pd.factorize(frame.run)[0], frame.index)
    rows = marks(
        {"y": 1000 * frame.latency_s.astype(float), "run": frame.run},
        colour=number.map(lambda n: palette.PHASES[n % len(palette.PHASES)]),
        marker=number.map(lambda n: "os^D"[n // len(palette.PHASES) % 4]),
        size_pt=5.0,
    )
    allocated, predicted = frame.allocated_bytes.astype(float), frame.predicted_bytes.astype(float)
    measured = rows.assign(x=allocated, join=rows.run, label=frame.sub_batch.astype(str))
    hollow = rows.assign(x=predicted, fill="hollow", layer=2)
    shown = pd.concat([hollow, measured])
    y = Axis("latency, ms", 0, 1.1 * max([*rows.y, 1]))
    chart = Chart(
        memory_axis("memory", shown.x), y, shown, keys(measured, "run", "colour", "marker")
    )
    return static.figure([chart], (9, 5), legend={"loc": "outside right upper"})
