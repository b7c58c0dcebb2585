"""Interactive figures of one run: how it learnt, how well it tells each class, and what it held in
memory when."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from bench.record import Record
from bench.report import style
from bench.report.figures import plotly_layout
from bench.report.figures.plotly_layout import Figure

MIB = 2**20
_PHASES = (style.HEAT, style.GLNET, "#009e73", "#cc79a7")
_CATEGORIES = {
    "weights": "#0072b2",
    "inputs": "#56b4e9",
    "activations": "#e69f00",
    "temporaries": "#d55e00",
    "gradients": "#009e73",
    "optimiser state": "#cc79a7",
}


def training(trained: Record | None) -> Figure | None:
    """Loss by optimiser step with its running mean, phases one after another; and mIoU on val where
    the training looked at it. None where a model learns in one step."""
    found = trained.values.get("loss", []) if trained else []
    if len(found) < 2:
        return None
    phases = [str(phase) for phase, _, _ in found]
    loss = pd.Series([float(value) for _, _, value in found])
    traces: list[dict[str, Any]] = []
    starts: dict[str, int] = {}
    for number, (phase, part) in enumerate(loss.groupby(phases, sort=False)):
        starts[str(phase)] = int(part.index[0])
        colour = _PHASES[number % len(_PHASES)]
        smooth = part.rolling(max(1, len(part) // 10), min_periods=1, center=True).mean()
        line = {"type": "scatter", "mode": "lines", "x": list(part.index), "legendgroup": phase}
        each = {"color": colour, "width": 0.8}
        mean = {"color": colour, "width": 2.2}
        traces += [
            {**line, "y": _digits(part), "line": each, "opacity": 0.4, "name": f"{phase}: loss",
             "showlegend": False, "hoverinfo": "skip"},
            {**line, "y": _digits(smooth), "line": mean, "name": f"{phase}: running mean of loss"},
        ]  # fmt: skip
    looks = trained.values.get("looks", []) if trained else []
    if looks:
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": "mIoU on val",
                "x": [starts[phase] + step for phase, step, _ in looks],
                "y": [round(100 * miou, 2) for _, _, miou in looks],
                "yaxis": "y2",
                "line": {"color": style.INK, "width": 1, "dash": "dot"},
                "marker": {"size": 5},
            }
        )
    right = {
        "overlaying": "y",
        "side": "right",
        "showgrid": False,
        "rangemode": "tozero",
        "automargin": True,
        **plotly_layout.heading("mIoU on val, %"),
    }
    return {
        "data": traces,
        "layout": plotly_layout.layout(
            plotly_layout.heading("step"),
            {"rangemode": "tozero", **plotly_layout.heading("loss")},
            **({"yaxis2": right} if looks else {}),
        ),
    }


def classes(names: Sequence[str], intervals: Mapping[str, tuple[float, float, float]]) -> Figure:
    """A dot a class with its interval.

    Args:
        names: of classes, the first one on top.
        intervals: IoU, its lower and its upper end, 0..1; a class without an IoU has none.
    """
    known = [name for name in names if name in intervals]
    points = [intervals[name] for name in known]
    return {
        "data": [
            {
                "type": "scatter",
                "mode": "markers",
                "x": [round(100 * value, 2) for value, _, _ in points],
                "y": [name.replace("_", " ") for name in known],
                "hovertemplate": "%{y}: %{x:.1f} %<extra></extra>",
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": [round(100 * (high - value), 2) for value, _, high in points],
                    "arrayminus": [round(100 * (value - low), 2) for value, low, _ in points],
                    "color": style.GREY,
                    "thickness": 2,
                    "width": 6,
                },
                "marker": {"color": style.HEAT, "size": 11},
            }
        ],
        "layout": plotly_layout.layout(
            {"range": [0, 100], **plotly_layout.heading("IoU on test, %")},
            {"autorange": "reversed", "type": "category", "showline": False, "ticks": ""},
            showlegend=False,
        ),
    }


def memory(course: Mapping[str, Any], peak: str) -> Figure:
    """Bytes alive over time, stacked by category, the peak marked.

    Args:
        course: `bench.memory.timeline.course`.
        peak: the operator and module at the peak.
    """
    events = [int(number) for number in course["events"]]
    bytes_ = course["bytes"]
    order = [*(name for name in _CATEGORIES if name in bytes_)]
    order += [name for name in bytes_ if name not in order]
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": name,
            "stackgroup": "alive",
            "x": events,
            "y": [round(count / MIB, 3) for count in bytes_[name]],
            "line": {"color": _CATEGORIES.get(name, style.GREY), "width": 0.5, "shape": "hv"},
            "hovertemplate": f"{name} %{{y:.1f}} MiB<extra></extra>",
        }
        for name in order
    ]
    totals = [sum(bytes_[name][i] for name in order) for i in range(len(events))]
    at = totals.index(max(totals))
    top = round(totals[at] / MIB, 3)
    traces.append(
        {
            "type": "scatter",
            "mode": "markers",
            "name": "peak",
            "x": [events[at]],
            "y": [top],
            "hovertemplate": f"peak {top:.1f} MiB: {peak}<extra></extra>",
            "marker": {"symbol": "triangle-down", "size": 12, "color": style.INK},
        }
    )
    return {
        "data": traces,
        "layout": plotly_layout.layout(
            plotly_layout.heading("tensors taken and given back, in order"),
            {"rangemode": "tozero", "ticksuffix": " MiB", **plotly_layout.heading("tensors alive")},
        ),
    }


def _digits(values: pd.Series) -> list[float]:
    return [float(f"{value:.4g}") for value in values]
