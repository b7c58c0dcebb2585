"""Charts and curves as interactive figures: plain values for plotly.js.

Fonts, colours and what else all figures share is the template in assets/figures.js."""

import html
import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pandas as pd

from bench.report import style
from bench.report.figures import static
from bench.report.figures.chart import Axis, Chart, Line
from bench.report.figures.palette import FILLS, GREY, INK, SYMBOLS

Figure = dict[str, Any]
"""`data`: traces; `layout`; `narrow`: the annotations of a narrow screen."""
LAST = 2000
"""Rank in the legend of lines."""
WIDE_PX, NARROW_PX = (720, 360), (286, 260)
"""Of the axes, for which labels are placed: on a desk, and on a phone, which names the front and GLNet."""


def scatter(chart: Chart) -> Figure:
    """The interactive figure of a chart: one trace a value of `trace`, then the legend."""
    behind = chart.points.layer == 1
    look: Any = {"color": INK, "shape": "hv", "width": 1.2}
    front = [line("Pareto front", *zip(*chart.steps, strict=True), **look)] if chart.steps else []
    ends = [chart.x.low, chart.x.high]
    levels = [
        line(one.text, ends, [one.at] * 2, color=one.colour, dash=one.dash, width=1)
        for one in chart.lines
        if not one.upright
    ]
    joins = [
        line("", own.x, own.y, color=own.colour.iloc[0], width=1) | {"showlegend": False}
        for _, own in chart.points[chart.points["join"] != ""].groupby("join", sort=False)
        if len(own) > 1
    ]
    keys = chart.keys[chart.keys.marker != ""]
    glnet = chart.points.trace == style.network_name("glnet")
    named = chart.points.assign(label=chart.points.label.where(chart.points.bold | glnet, ""))
    return {
        "data": [
            *_traces(chart.points[behind], chart),
            *(one | {"hoverinfo": "skip", "legendrank": LAST} for one in (*levels, *joins, *front)),
            *_traces(chart.points[~behind], chart),
            *(
                # Strategies are grey: where there is space, they are a second column.
                _markers(name, own)
                | {"hoverinfo": "skip"}
                | ({"legend": "legend2"} if own.colour.iloc[0] == GREY else {})
                for name, own in keys.groupby("label", sort=False)
            ),
        ],
        "layout": {
            "xaxis": _axis(chart.x),
            "yaxis": _axis(chart.y),
            "shapes": [_upright(line) for line in chart.lines if line.upright],
            "annotations": _labels(chart, WIDE_PX),
            "showlegend": bool(len(keys)),
        },
        "narrow": _labels(replace(chart, points=named), NARROW_PX),
    }


def line(name: str, x: Iterable[Any], y: Iterable[float], **look: Any) -> dict[str, Any]:
    """A trace with five significant digits, so that pages stay small."""
    values = [float(f"{value:.5g}") for value in y]
    return {"mode": "lines", "name": name, "x": [*x], "y": values, "line": look}


def heading(text: str) -> dict[str, Any]:
    """The title of an axis."""
    return {"title": {"text": text}}


def _traces(points: pd.DataFrame, chart: Chart) -> list[dict[str, Any]]:
    return [
        {
            **_markers(name, own),
            "mode": "markers",
            "showlegend": False,
            "x": own.x.round(3).tolist(),
            "y": own.y.round(3).tolist(),
            "cliponaxis": False,
            f"error_{chart.interval}": _interval(own, chart.interval),
            **(
                {"customdata": own.run.tolist()}
                if (own.run != "").all()
                else {"hovertext": own.hover.tolist(), "hoverinfo": "text"}
            ),
        }
        for name, own in points.groupby("trace", sort=False)
    ]


def _labels(chart: Chart, size_px: tuple[int, int]) -> list[dict[str, Any]]:
    return [_label(one, chart) for one in static.labels(chart, size_px, 11)]


def _label(one: Any, chart: Chart) -> dict[str, Any]:
    """A label at its offset in pixels, with its leader line if it has one."""
    (x, y), text = one.xy, html.escape(one.get_text())
    return {
        "x": math.log10(x) if chart.x.log else float(x),
        "y": float(y),
        "ax": round(float(one.xyann[0])),
        "ay": -round(float(one.xyann[1])),
        "text": f"<b>{text}</b>" if one.get_fontweight() == "bold" else text,
        **({} if one.arrow_patch else {"arrowcolor": "transparent"}),
    }


def _markers(name: Any, own: pd.DataFrame) -> dict[str, Any]:
    """A trace of markers without a place: alone it is an entry of the legend."""
    hollow = own.fill.isin(("hollow", "ring"))
    edges = [FILLS[fill][1] or colour for fill, colour in zip(own.fill, own.colour, strict=True)]
    return {
        "mode": "markers",
        "name": str(name),
        "legendgroup": str(name),
        "x": [None],
        "y": [None],
        "marker": {
            "color": own.colour.tolist(),
            "size": (own.size_pt * 4 / 3).round(1).tolist(),
            "symbol": (own.marker.map(SYMBOLS) + hollow.map({True: "-open", False: ""})).tolist(),
            "opacity": [FILLS[fill][3] for fill in own.fill],
            "line": {"color": edges, "width": hollow.map({True: 2, False: 1}).tolist()},
        },
    }


def _interval(own: pd.DataFrame, axis: str) -> dict[str, Any]:
    """Bars from `low` to `high`; none if no point has them."""
    if own.low.isna().all():
        return {"visible": False}
    above, below = own.high - own[axis], own[axis] - own.low
    return {
        "symmetric": False,
        "array": above.fillna(0).round(3).tolist(),
        "arrayminus": below.fillna(0).round(3).tolist(),
        "color": f"{own.colour.iloc[0]}66",
    }


def _axis(axis: Axis) -> dict[str, Any]:
    ends = [axis.low, axis.high]
    ticks = {"tickvals": list(axis.ticks), "ticktext": list(axis.ticks.values())}
    return {
        **heading(axis.title),
        **({"type": "log", "range": [*map(math.log10, ends)]} if axis.log else {"range": ends}),
        **(ticks if axis.ticks else {}),
    }


def _upright(line: Line) -> dict[str, Any]:
    """A reference line over the whole figure, with its text at the upper end."""
    at = round(float(line.at), 3)
    return {
        **{"yref": "paper", "y0": 0, "y1": 1, "x0": at, "x1": at},
        "line": {"color": line.colour, "width": 1, "dash": line.dash},
        "label": {"text": line.text, "font": {"color": line.colour}, "textangle": -90},
    }
