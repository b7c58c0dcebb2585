"""What all interactive figures share. A figure is what plotly.js takes, `{data, layout}`, in plain
values: made here, tested here, and drawn by a dozen lines of script."""

from collections.abc import Mapping, Sequence
from typing import Any

from bench.report import style

Figure = dict[str, Any]
"""`data`: traces; `layout`."""
FAMILY = 'Inter, "Helvetica Neue", Helvetica, Arial, "Liberation Sans", sans-serif'
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


def symbols(strategies: Sequence[str]) -> dict[str, str]:
    """A plotly symbol a strategy, the shape that it has in the static figures."""
    return {name: _SYMBOLS[marker] for name, marker in style.markers(strategies).items()}


def layout(x: Mapping[str, Any], y: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """The look of a figure, in the colours of the static ones.

    Args:
        x, y: what is particular about an axis.
        more: what else is particular.
    """
    common = {
        "gridcolor": "#e8ebee",
        "linecolor": style.GREY,
        "showline": True,
        "tickcolor": style.GREY,
        "ticks": "outside",
        "zeroline": False,
        "automargin": True,
    }
    return {
        "font": {"family": FAMILY, "size": 13, "color": style.INK},
        "margin": {"l": 56, "r": 16, "t": 28, "b": 48},
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "hovermode": "closest",
        "hoverlabel": {
            "align": "left",
            "bgcolor": "#ffffff",
            "bordercolor": style.GREY,
            "font": {"family": FAMILY, "size": 12, "color": style.INK},
        },
        "legend": {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
        "xaxis": {**common, **x},
        "yaxis": {**common, **y},
        **more,
    }


def heading(text: str) -> dict[str, Any]:
    """The title of an axis."""
    return {"title": {"text": text, "standoff": 10, "font": {"size": 13}}}
