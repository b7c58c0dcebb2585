"""Colours and markers of all figures: the same network and strategy look the same everywhere.

The colours of the first networks are those of Okabe and Ito, which colour-blind readers can tell
apart. A marker's shape carries the same information, so that a black-and-white print works."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

INK, GREY, PALE = "#1c2430", "#6b7480", "#d9dde2"
ERROR, BLUE, PUBLISHED = "#d55e00", "#0072b2", "#c3c8ce"
PHASES = (BLUE, ERROR, "#009e73", "#cc79a7")
"""Colours of training phases, in order."""
_NETWORKS = {
    "glnet": (ERROR, "*"),
    "unet": (BLUE, "o"),
    "fpn": ("#56b4e9", "v"),
    "pspnet": ("#009e73", "D"),
    "deeplabv3plus": ("#cc79a7", "P"),
    "unet2015": ("#332288", "s"),
    "fcn8s": ("#e69f00", "^"),
    "segnet": ("#8c6d31", "X"),
    "enet": ("#999933", "<"),
    "icnet": ("#882255", ">"),
    "isdnet": ("#117733", "d"),
    "fctl": ("#aa4499", "8"),
    "magnet": ("#661100", "H"),
    "pointrend": ("#6699cc", "p"),
    "cascadepsp": ("#888888", "h"),
    "colour": (GREY, "o"),
}
_STRATEGIES = {
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
_HERE = Path(__file__).parent
RC: Any = dict(mpl.rc_params_from_file(_HERE / "report.mplstyle", use_default_template=False))
"""matplotlib's settings of all figures."""
COLUMN_RC: Any = RC | dict(
    mpl.rc_params_from_file(_HERE / "column.mplstyle", use_default_template=False)
)
"""The same at the width of a paper's column."""


def colours(networks: Iterable[str]) -> dict[str, str]:
    """A colour a network; unknown networks take spare ones in alphabetical order."""
    own = {name: colour for name, (colour, _) in _NETWORKS.items()}
    return _assign(networks, own, ("#000000", "#44aa99", "#ddcc77", "#7f7f7f"))


def network_markers(networks: Iterable[str]) -> dict[str, str]:
    """A matplotlib marker a network, for figures without a shape a strategy."""
    own = {name: marker for name, (_, marker) in _NETWORKS.items()}
    return _assign(networks, own, ("$+$", "$x$", "$=$", "$o$"))


def markers(strategies: Iterable[str]) -> dict[str, str]:
    """A matplotlib marker a strategy."""
    return _assign(strategies, _STRATEGIES, ("d", "H"))


def _assign(names: Iterable[str], own: Mapping[str, str], spare: tuple[str, ...]) -> dict[str, str]:
    names = list(dict.fromkeys(names))
    unknown = sorted(name for name in names if name not in own)
    return {name: own.get(name) or spare[unknown.index(name) % len(spare)] for name in names}
