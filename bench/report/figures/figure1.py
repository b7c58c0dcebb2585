"""Figure 1 of the paper, made of our runs at the width of a column: (a) all of them, (b) whole
images, (c) patches.

A network is a shape and a colour at once, so that neither a print in black and white nor an eye
that sees no colours loses it. What the strategy shows the network is the filling: hollow the whole
image, full patches, with a dark edge patches that know of the whole."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from bench.report import pareto, quality_gate, style
from bench.report.figures import scatter
from bench.report.load_records import BASELINE, MB, published

COLUMN_IN = 3.35
"""Width of a column of the paper's two."""
GIB = 2**30
WHOLE = ("downsample", "whole", "global")
"""Strategies that show a network the whole image and nothing else."""
ALONE = ("patch", "local", "plain")
"""Strategies that show it patches and nothing else."""
PANELS = (
    ("a", "Accuracy against memory, all runs"),
    ("b", "Whole images: shrunk, and as they are"),
    ("c", "Patches, alone and knowing of the whole"),
)
_MARKERS = {
    "glnet": "*",
    "unet": "o",
    "unet2015": "s",
    "fcn8s": "^",
    "fpn": "v",
    "pspnet": "D",
    "deeplabv3plus": "P",
    "segnet": "X",
    "enet": "<",
    "icnet": ">",
    "mobilenetv2-unet": "h",
}
_SPARE = ("p", "8", "d", "H")
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (4, 1.5, 1, 1.5)))
_RC: Any = {
    **style.RC,
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.2,
    "axes.linewidth": 0.6,
    "grid.linewidth": 0.5,
}


def figure(letter: str, frame: pd.DataFrame, meter: str, where: str) -> Figure:
    """One of the three panels of one data set.

    Args:
        letter: of PANELS.
        frame: `table.runs` of the data set.
        meter: the column of the memory axis.
        where: the device in words, for the axis.
    """
    whole = frame.strategy.isin(WHOLE)
    part = {"a": frame, "b": frame[whole], "c": frame[~whole]}[letter]
    trained = part[part.network != BASELINE]
    points = trained.dropna(subset=["miou", meter])
    looks = _looks(list(frame.network[frame.network != BASELINE]))
    with mpl.rc_context(_RC):
        drawing = Figure(figsize=(COLUMN_IN, 3.1), layout="constrained")
        axes = drawing.subplots()
        dataset = str(frame.dataset.iloc[0]) if len(frame) else ""
        theirs = _published(dataset, letter)
        sizes = [*points[meter].astype(float), *(theirs.memory_mb * MB)]
        _memory_axis(axes, sizes)
        axes.scatter(
            theirs.memory_mb * MB, theirs.miou_percent, s=16, color="#c3c8ce", zorder=1, lw=0
        )
        if letter != "a":
            _join(axes, points, meter, looks)
        _lines(axes, frame, points, meter, front=letter == "a")
        for _, row in points.iterrows():
            paint = _paint(str(row.strategy), *looks[str(row.network)])
            axes.scatter(float(row[meter]), 100 * float(row.miou), zorder=3, **paint)
        axes.set_title(f"mIoU on {dataset} (test), %", fontweight="bold")
        axes.set_xlabel(f"peak memory: {scatter.METER_NAMES.get(meter, meter)}\n{where}")
        _legend(drawing, points, theirs, looks)
    return drawing


def _looks(networks: Sequence[str]) -> dict[str, tuple[str, str]]:
    """(marker, colour) a network."""
    colours = style.colours(networks)
    spare = iter(_SPARE * (1 + len(networks)))
    return {name: (_MARKERS.get(name) or next(spare), colours[name]) for name in sorted(colours)}


def _paint(strategy: str, marker: str, colour: str) -> dict[str, Any]:
    both = strategy not in WHOLE and strategy not in ALONE
    return {
        "marker": marker,
        "s": 62 if marker == "*" else 26,
        "facecolor": "white" if strategy in WHOLE else colour,
        "edgecolor": style.INK if both else colour,
        "linewidth": 1.0,
    }


def _join(
    axes: Axes, points: pd.DataFrame, meter: str, looks: Mapping[str, tuple[str, str]]
) -> None:
    """A network's points with one encoder, joined by memory, each line with a dash of its own."""
    alike = points.groupby(["network", "encoder"], sort=True, dropna=False)
    for number, ((network, _), own) in enumerate(alike):
        line = own.sort_values(meter, kind="stable")
        axes.plot(
            line[meter].astype(float),
            100 * line.miou,
            color=looks[str(network)][1],
            ls=_DASHES[number % len(_DASHES)],
            lw=0.8,
            zorder=2,
        )


def _lines(axes: Axes, frame: pd.DataFrame, points: pd.DataFrame, meter: str, front: bool) -> None:
    """The quality gate, the floor, the paper's 2 GiB and the front."""
    best = frame.miou[frame.network != BASELINE].max()
    if pd.notna(best):
        axes.axhline(100 * quality_gate.SHARE * best, color=style.GREY, lw=0.7, ls=":", zorder=0)
    floor = quality_gate.baseline_miou(frame)
    if floor is not None:
        axes.axhline(100 * floor, color=style.GREY, lw=0.7, ls=(0, (5, 3)), zorder=0)
    left, right = axes.get_xlim()
    if left <= 2 * GIB <= right:
        axes.axvline(2 * GIB, color=style.INK, lw=0.8, ls=(0, (5, 3)), zorder=0)
        axes.annotate(
            "2 GiB",
            (2 * GIB, 1),
            (2, -2),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            va="top",
            fontsize=6.2,
        )
    if front:
        chosen = points.set_index("run").loc[pareto.front(points, meter, floor)]
        if len(chosen):
            x = [*chosen[meter].astype(float), right]
            y = [*(100 * chosen.miou), 100 * chosen.miou.iloc[-1]]
            axes.plot(x, y, drawstyle="steps-post", color=style.INK, lw=0.8, zorder=1)
            axes.set_xlim(left, right)


def _memory_axis(axes: Axes, sizes: Sequence[float]) -> None:
    left, right = scatter.memory_range(sizes)
    axes.set_xscale("log", base=2)
    axes.set_xlim(left, right)
    axes.xaxis.set_major_locator(FixedLocator(scatter.byte_ticks(left, right, logarithmic=True)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: scatter.short_size(value)))
    axes.tick_params(axis="x", rotation=30)


def _published(dataset: str, letter: str) -> pd.DataFrame:
    """Published rows of a data set that belong to a panel."""
    frame = published().dropna(subset=["memory_mb", "miou_percent"])
    frame = frame[frame.dataset.str.lower() == dataset.lower()]
    whole = frame.inference == "global"
    return {"a": frame, "b": frame[whole], "c": frame[~whole]}[letter]


def _legend(
    drawing: Figure,
    points: pd.DataFrame,
    theirs: pd.DataFrame,
    looks: Mapping[str, tuple[str, str]],
) -> None:
    here = set(points.network)
    key: dict[str, Any] = {"ls": "", "markersize": 4.5}
    keys = [
        Line2D([], [], marker=marker, color=colour, label=style.network_name(name), **key)
        for name, (marker, colour) in looks.items()
        if name in here
    ]
    strategies = set(points.strategy)
    shapes: dict[str, Any] = {"marker": "o", "markeredgecolor": style.GREY, "markeredgewidth": 1.0}
    if strategies & set(WHOLE):
        keys.append(Line2D([], [], markerfacecolor="white", label="whole image", **shapes, **key))
    if strategies & set(ALONE):
        keys.append(Line2D([], [], markerfacecolor=style.GREY, label="patches", **shapes, **key))
    if strategies - set(WHOLE) - set(ALONE):
        edge = {**shapes, "markeredgecolor": style.INK}
        keys.append(Line2D([], [], markerfacecolor=style.GREY, label="both", **edge, **key))
    if len(theirs):
        keys.append(Line2D([], [], marker="o", color="#c3c8ce", label="published", **key))
    if keys:
        drawing.legend(handles=keys, loc="outside lower center", ncols=4, columnspacing=1.0,
                       handletextpad=0.2)  # fmt: skip
