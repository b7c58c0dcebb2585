"""One look for figures and page: colours, markers, and units for people.

The colours are those of Okabe and Ito, which the colour-blind can tell apart; a strategy is a
marker's shape, so that a print in black and white still says which is which."""

from collections.abc import Iterable
from typing import Any

import pandas as pd

INK, GREY, PALE = "#1c2430", "#6b7480", "#d9dde2"
GLNET, PAPER, HEAT = "#d55e00", "#8a929c", "#0072b2"
ERROR = "#d55e00"
_COLOURS = {
    "glnet": GLNET,
    "unet": "#0072b2",
    "fpn": "#56b4e9",
    "pspnet": "#009e73",
    "deeplabv3plus": "#cc79a7",
    "unet2015": "#332288",
    "fcn8s": "#e69f00",
    "segnet": "#8c6d31",
    "enet": "#999933",
    "icnet": "#882255",
    "isdnet": "#117733",
    "fctl": "#aa4499",
    "magnet": "#661100",
    "pointrend": "#6699cc",
    "cascadepsp": "#888888",
    "colour": GREY,
}
_SPARE_COLOURS = ("#000000", "#44aa99", "#ddcc77", "#7f7f7f")
NETWORKS = {
    "glnet": "GLNet",
    "unet": "U-Net",
    "unet2015": "U-Net of 2015",
    "fcn8s": "FCN-8s",
    "segnet": "SegNet",
    "enet": "ENet",
    "icnet": "ICNet",
    "fpn": "FPN",
    "pspnet": "PSPNet",
    "deeplabv3plus": "DeepLabv3+",
    "colour": "nearest class-mean colour",
    "isdnet": "ISDNet",
    "fctl": "FCtL",
    "magnet": "MagNet",
    "pointrend": "our PointRend",
    "cascadepsp": "our CascadePSP",
}
_MARKERS = {
    "downsample": "v",
    "patch": "s",
    "whole": "o",
    "global": "^",
    "local": "D",
    "global-to-local": "P",
    "collaborative": "*",
    "contexts": "X",
    "progressive": "h",
    "fast": "p",
    "coarse": "<",
    "cascade": "8",
    "base": ">",
}
_SPARE_MARKERS = ("d", "H")
NOTHING = "–"

# Text stays text in SVG, so that the page's own typeface sets it; a fixed salt and no dates make
# the files the same for the same numbers.
RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "grid.color": "#e8ebee",
    "grid.linewidth": 0.8,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "glnet-bench",
    "pdf.fonttype": 42,
}


def colours(networks: Iterable[str]) -> dict[str, str]:
    """A colour a network, the same in every figure; networks that have none of their own take spare
    ones."""
    return _assign(networks, _COLOURS, _SPARE_COLOURS)


def markers(strategies: Iterable[str]) -> dict[str, str]:
    """A matplotlib marker a strategy."""
    return _assign(strategies, _MARKERS, _SPARE_MARKERS)


def network_name(network: str) -> str:
    """As papers spell it."""
    return NETWORKS.get(network, network)


def percent(share: Any, digits: int = 1) -> str:
    """0.716 -> `71.6`."""
    return NOTHING if pd.isna(share) else f"{100 * share:.{digits}f}"


def size(count: Any) -> str:
    """Bytes -> MiB or GiB with three digits."""
    if pd.isna(count):
        return NOTHING
    value, unit = (count / 2**20, "MiB") if count < 2**30 else (count / 2**30, "GiB")
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"


def duration(seconds: Any) -> str:
    """Seconds -> ms or s with three digits."""
    if pd.isna(seconds):
        return NOTHING
    value, unit = (1000 * seconds, "ms") if seconds < 1 else (seconds, "s")
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"


def count(number: Any) -> str:
    """Parameters in millions."""
    return NOTHING if pd.isna(number) else f"{number / 1e6:.2f} M"


def _assign(names: Iterable[str], own: dict[str, str], spare: tuple[str, ...]) -> dict[str, str]:
    names = list(dict.fromkeys(names))
    others = sorted(name for name in names if name not in own)
    extra = {name: spare[i % len(spare)] for i, name in enumerate(others)}
    return {name: own.get(name) or extra[name] for name in names}
