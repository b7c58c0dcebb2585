"""What a figure shows, as data: rows of points, two axes, reference lines and a legend.

`static.py` draws a chart with matplotlib, `interactive.py` makes a figure for plotly.js of the
same chart."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from matplotlib.ticker import MaxNLocator

from bench.report.figures.palette import GREY

GIB, MIB = 2.0**30, 2.0**20
PAPER_BYTES = 2 * GIB
"""The limit that the GLNet paper claims."""
_COLUMNS: Mapping[str, Any] = {
    "x": math.nan,
    "y": math.nan,
    "low": math.nan,  # interval along the axis `Chart.interval`
    "high": math.nan,
    "colour": GREY,
    "marker": "o",  # of matplotlib; "": only a corner of a joining line
    "fill": "full",  # of palette.FILLS
    "size_pt": 8.7,
    "label": "",
    "bold": False,
    "join": "",  # points with the same value are joined by a line
    "dash": "solid",
    "trace": "",  # name of the interactive trace
    "run": "",
    "hover": "",
    "layer": 3,  # 1: behind all lines
}


def marks(frame: Any, **columns: Any) -> pd.DataFrame:
    """Rows of a chart; columns that are not given take their defaults."""
    frame = pd.DataFrame(frame).assign(**columns)
    missing = {name: value for name, value in _COLUMNS.items() if name not in frame}
    filled: pd.DataFrame = frame.assign(**missing)
    return filled


def each(points: pd.DataFrame) -> Iterator[Any]:
    """Rows as named tuples, of columns that type checkers do not know."""
    yield from points.itertuples()


@dataclass(frozen=True)
class Axis:
    """One axis; without `ticks` they are chosen by the renderer."""

    title: str
    low: float
    high: float
    log: bool = False
    ticks: Mapping[float, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """A reference line at one value."""

    at: float
    text: str
    upright: bool = False
    dash: str = "dash"
    colour: str = GREY


@dataclass(frozen=True)
class Chart:
    """A scatter plot."""

    x: Axis
    y: Axis
    points: pd.DataFrame
    """`marks`."""
    keys: pd.DataFrame = field(default_factory=lambda: marks([]))
    """Legend: `marks` with a label and no place."""
    lines: tuple[Line, ...] = ()
    """Upright ones first."""
    front: bool = False
    """Whether the bold points are a Pareto front."""
    note: str = ""
    diagonal: float | None = None
    """Draw x = y with a band of this relative width."""
    join_colour: str | None = None
    """None: the colour of the points."""
    join_width: float = 1.2
    interval: str = "y"

    @property
    def best(self) -> pd.DataFrame:
        """The points of the front, cheapest first."""
        return self.points[self.points.bold.astype(bool)].sort_values("x", kind="stable")

    @property
    def steps(self) -> list[tuple[float, float]]:
        """The front up to the end of the x axis; empty without one."""
        found = list(zip(self.best.x, self.best.y, strict=True)) if self.front else []
        return [*found, (self.x.high, found[-1][1])] if found else []


def keys(points: pd.DataFrame, by: str, *looks: str, heading: str = "") -> pd.DataFrame:
    """Legend entries: one a value of the column `by`, with the columns `looks` of its points."""
    found = points.drop_duplicates(by)[[by, *looks]].rename(columns={by: "label"})
    title = [{"label": heading, "bold": True, "marker": ""}] if heading and len(found) else []
    return pd.concat([marks(title), marks(found)])


def memory_axis(title: str, values: Iterable[float], log: bool | None = None) -> Axis:
    """Bytes; logarithmic if asked for, or if the values span more than a factor of 3."""
    sizes = [float(value) for value in values] or [MIB, GIB]
    low, high = min(sizes), max(sizes)
    if log or (log is None and high > 3 * low):
        left, right = low / 1.25, high * 1.25
        whole = [2.0**k for k in range(math.floor(math.log2(left)), math.ceil(math.log2(right)))]
        ticks = [tick for tick in whole if left <= tick <= right]
        if len(ticks) < 5:
            ticks = [t for k in whole for t in (k, 1.5 * k) if left <= t <= right]
        ticks = ticks[:: math.ceil(len(ticks) / 9) or 1]
        return Axis(title, left, right, True, {tick: _size(tick) for tick in ticks})
    margin = 0.08 * (high - low) or 0.1 * high
    return linear_memory_axis(title, low - margin, high + margin)


def linear_memory_axis(title: str, left: float, right: float) -> Axis:
    """Bytes from `left` to `right`, with round numbers of MiB or GiB."""
    unit = GIB if right > 4 * GIB else MIB
    ticks = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(left / unit, right / unit)
    sizes = [float(tick * unit) for tick in ticks if left <= tick * unit <= right]
    return Axis(title, left, right, ticks={size: _size(size) for size in sizes})


def percent_axis(title: str, values: Iterable[float], margin: float = 0.1) -> Axis:
    """Percentages, with a margin relative to their range and never beyond 0..100."""
    known = [float(value) for value in values if not pd.isna(value)] or [0.0, 100.0]
    low, high = min(known), max(known)
    pad = margin * (high - low) or 5.0
    return Axis(title, max(0.0, low - pad), min(100.0, high + pad))


def rows_axis(title: str, names: Iterable[str], above: float = 0.0) -> Axis:
    """One row a name, the first one at the bottom."""
    ticks = {float(place): name for place, name in enumerate(names)}
    return Axis(title, -0.7, max(3, len(ticks)) - 0.3 + above, ticks=ticks)


def _size(value: float) -> str:
    """Bytes as a round number of the largest unit in which it is a multiple of a quarter."""
    for power, unit in ((40, "TiB"), (30, "GiB")):
        if value >= 2**power and value * 4 % 2**power == 0:
            return f"{value / 2**power:g} {unit}"
    return f"{value / MIB:g} MiB" if value else "0"
