"""Charts as interactive figures: the traces and shapes that plotly.js draws."""

import html
import math
from typing import Any

import pandas as pd

from bench.report.figures.chart import Axis, Chart, Line, each
from bench.report.figures.palette import INK
from bench.report.figures.plotly_layout import Figure, heading, layout
from bench.report.figures.scatter import FILLS

_SYMBOLS = {
    "o": "circle",
    "s": "square",
    "D": "diamond",
    "P": "cross",
    "X": "x",
    "*": "star",
    "^": "triangle-up",
    "v": "triangle-down",
    "<": "triangle-left",
    ">": "triangle-right",
    "h": "hexagon",
    "p": "pentagon",
    "8": "octagon",
    "d": "diamond-tall",
    "H": "hexagon2",
}


def plotly_scatter(chart: Chart) -> Figure:
    """The interactive figure of a chart: one trace a value of `trace`, then the legend."""
    behind = chart.points.layer == 1
    front = {
        "type": "scatter",
        "mode": "lines",
        "name": "Pareto front",
        "hoverinfo": "skip",
        "line": {"color": INK, "shape": "hv", "width": 1.2},
        "x": [x for x, _ in chart.steps],
        "y": [rounded(y) for _, y in chart.steps],
    }
    legend = [_key(row) for row in each(chart.keys[chart.keys.marker != ""])]
    return {
        "data": [
            *_traces(chart.points[behind], chart.interval),
            *([front] if chart.front else []),
            *_traces(chart.points[~behind], chart.interval),
            *legend,
        ],
        "layout": layout(
            _axis(chart.x), _axis(chart.y), shapes=[_shape(line) for line in chart.lines],
            showlegend=bool(legend),
        ),
    }  # fmt: skip


def _traces(points: pd.DataFrame, interval: str) -> list[dict[str, Any]]:
    return [
        {
            "type": "scatter",
            "mode": "markers+text",
            "name": str(name),
            "legendgroup": str(name),
            "showlegend": False,
            "x": own.x.round(3).tolist(),
            "y": own.y.round(3).tolist(),
            "text": [f"<b>{html.escape(text)}</b>" for text in own.label.where(own.bold, "")],
            "textposition": "top center",
            "textfont": {"size": 11},
            "cliponaxis": False,
            f"error_{interval}": _interval(own, interval),
            "marker": {**_marker(own), "opacity": [FILLS[fill][3] for fill in own.fill]},
            **({"customdata": own.run.tolist()} if (own.run != "").all() else
               {"hovertext": own.hover.tolist(), "hoverinfo": "text"}),
        }
        for name, own in points.groupby("trace", sort=False)
    ]  # fmt: skip


def _marker(own: pd.DataFrame) -> dict[str, Any]:
    """Symbols, colours and edges of points."""
    hollow = own.fill.isin(("hollow", "ring"))
    edges = [FILLS[fill][1] or colour for fill, colour in zip(own.fill, own.colour, strict=True)]
    return {
        "color": own.colour.tolist(),
        "size": (own.size_pt * 4 / 3).round(1).tolist(),
        "symbol": (own.marker.map(_SYMBOLS) + hollow.map({True: "-open", False: ""})).tolist(),
        "line": {"color": edges, "width": hollow.map({True: 2, False: 1}).tolist()},
    }


def _interval(own: pd.DataFrame, axis: str) -> dict[str, Any]:
    """Bars from `low` to `high`; none if no point has them."""
    if own.low.isna().all():
        return {"visible": False}
    return {
        "type": "data",
        "symmetric": False,
        "array": (own.high - own[axis]).fillna(0).round(3).tolist(),
        "arrayminus": (own[axis] - own.low).fillna(0).round(3).tolist(),
        "color": own.colour.iloc[0],
        "thickness": 1.5,
        "width": 5,
    }


def _key(row: Any) -> dict[str, Any]:
    """An entry of the legend without a point."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": row.label,
        "legendgroup": row.label,
        "x": [None],
        "y": [None],
        "hoverinfo": "skip",
        "marker": _marker(pd.DataFrame([row])),
    }


def _axis(axis: Axis) -> dict[str, Any]:
    ends = [axis.low, axis.high]
    found = {
        "range": [math.log10(end) for end in ends] if axis.log else ends,
        **heading(axis.title),
    }
    if axis.log:
        found["type"] = "log"
    if axis.ticks:
        found |= {"tickvals": list(axis.ticks), "ticktext": list(axis.ticks.values())}
    return found


def _shape(line: Line) -> dict[str, Any]:
    """A reference line over the whole figure, with its text at the end."""
    along, across = ("x", "y") if line.upright else ("y", "x")
    at = rounded(line.at)
    return {
        "type": "line",
        f"{across}ref": "paper",
        f"{across}0": 0,
        f"{across}1": 1,
        f"{along}0": at,
        f"{along}1": at,
        "layer": "below",
        "line": {"color": line.colour, "width": 1, "dash": line.dash},
        "label": {
            "text": line.text,
            "textposition": "end",
            "font": {"size": 11, "color": line.colour},
            **({"textangle": -90} if line.upright else {"yanchor": "bottom", "padding": 2}),
        },
    }


def rounded(value: float) -> float:
    """Three digits after the point, so that pages stay small."""
    return round(float(value), 3)
