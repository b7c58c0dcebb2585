"""The common layout of interactive figures: plain values that plotly.js takes."""

from collections.abc import Mapping
from typing import Any

from bench.report.figures.palette import GREY, INK

Figure = dict[str, Any]
"""`data`: traces; `layout`."""
_FONT = {
    "family": 'Inter, "Helvetica Neue", Helvetica, Arial, "Liberation Sans", sans-serif',
    "size": 13,
    "color": INK,
}


def layout(x: Mapping[str, Any], y: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """The layout of a figure in the colours of the static ones; `x`, `y` and `more` override it."""
    common = {
        "gridcolor": "#e8ebee",
        "linecolor": GREY,
        "showline": True,
        "tickcolor": GREY,
        "ticks": "outside",
        "zeroline": False,
        "automargin": True,
    }
    label = {"align": "left", "bgcolor": "#ffffff", "bordercolor": GREY, "font": _FONT}
    return {
        "font": _FONT,
        "margin": {"l": 56, "r": 16, "t": 28, "b": 48},
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "hovermode": "closest",
        "hoverlabel": label | {"font": {**_FONT, "size": 12}},
        "legend": {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
        "xaxis": {**common, **x},
        "yaxis": {**common, **y},
        **more,
    }


def heading(text: str) -> dict[str, Any]:
    """The title of an axis."""
    return {"title": {"text": text, "standoff": 10, "font": {"size": 13}}}
