"""Colours and markers of all figures: the same network and strategy look the same everywhere.

Those of networks, strategies and categories of memory are in `bench/report/looks.yaml`."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

from bench.report import style

INK, GREY, PALE = "#1c2430", "#6b7480", "#d9dde2"
ERROR, BLUE, PUBLISHED = "#d55e00", "#0072b2", "#c3c8ce"
CATEGORIES: Mapping[str, str] = style.LOOKS["categories"]
"""Colours of memory, from the bottom of a stack to its top."""
SYMBOLS: Mapping[str, str] = style.LOOKS["symbols"]
"""Markers of matplotlib -> those of plotly.js."""
PHASES = (BLUE, ERROR, "#009e73", "#cc79a7")
"""Colours of training phases, in order."""
FILLS: Mapping[str, tuple[str | None, str | None, float, float]] = {
    "full": (None, "white", 0.6, 1.0),
    "solid": (None, None, 1.0, 1.0),
    "strong": (None, INK, 0.9, 1.0),
    "pale": (None, "white", 0.6, 0.3),
    "hollow": ("white", None, 1.5, 1.0),
    "ring": ("none", None, 1.6, 1.0),
}
"""Face and edge of a marker (None: the colour of the point), width of the edge, opacity."""


def _settings(name: str) -> Any:
    path = Path(__file__).with_name(f"{name}.mplstyle")
    return dict(mpl.rc_params_from_file(path, use_default_template=False))


RC = _settings("report")
"""matplotlib's settings of all figures."""
COLUMN_RC = RC | _settings("column")
"""The same at the width of a paper's column."""


def colours(networks: Iterable[str]) -> dict[str, str]:
    """A colour a network; unknown networks take spare ones in alphabetical order."""
    own = {name: colour for name, (_, colour) in style.LOOKS["networks"].items()}
    return _assign(networks, own, ("#000000", "#44aa99", "#ddcc77", "#7f7f7f"))


def markers(strategies: Iterable[str]) -> dict[str, str]:
    """A matplotlib marker a strategy."""
    own = {
        name: one["marker"] for name, one in style.LOOKS["strategies"].items() if "marker" in one
    }
    return _assign(strategies, own, ("d", "H"))


def _assign(names: Iterable[str], own: Mapping[str, str], spare: tuple[str, ...]) -> dict[str, str]:
    names = list(dict.fromkeys(names))
    unknown = sorted(name for name in names if name not in own)
    return {name: own.get(name) or spare[unknown.index(name) % len(spare)] for name in names}
