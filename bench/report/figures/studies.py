"""Static figures of single studies: seeds, growth with the image, and published settings on a GPU."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from bench.report import style
from bench.report.load_records import MB
from bench.report.seeds import ONE_VIEW, Group

PAPER_BYTES = 2 * 2**30
"""What GLNet is said to stay under."""
QUANTITIES: Mapping[str, tuple[str, str]] = {
    "device_bytes": ("device memory, tensors", "B"),
    "host_bytes": ("host memory, tensors", "B"),
    "flops": ("operations", "FLOP"),
}
"""Column -> (heading, unit)."""
PAPERS = "rivals of the GLNet paper"


def seeds(found: Sequence[Group], limits: Mapping[str, float]) -> Figure:
    """A dot a seed, a bar at the mean, one line a group; ceilings as upright lines."""
    with mpl.rc_context(style.RC):
        drawn = Figure(figsize=(9, 1.5 + 0.42 * max(3, len(found))), layout="constrained")
        axes = drawn.subplots()
        markers = style.markers(group.strategy for group in found)
        for y, group in enumerate(reversed(found)):
            colour = (
                style.GLNET if group.feature_sharing or group.strategy in ONE_VIEW else style.GREY
            )
            shares = [100 * miou for miou in group.mious]
            axes.plot(
                [0, 100 * group.mean],
                [y, y],
                color=style.PALE,
                lw=7,
                zorder=1,
                solid_capstyle="butt",
            )
            point: dict[str, Any] = {"edgecolor": "white", "linewidth": 0.5, "zorder": 3}
            marker = markers[group.strategy]
            axes.scatter(shares, [y] * len(shares), s=52, color=colour, marker=marker, **point)
            axes.annotate(
                style.percent(group.mean),
                (max(shares), y),
                (9, 0),
                textcoords="offset points",
                va="center",
                fontweight="bold",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            )
        for number, (name, limit) in enumerate(sorted(limits.items(), key=lambda pair: pair[1])):
            axes.axvline(100 * limit, color=style.INK, lw=1, ls=(0, (5, 3)), zorder=2)
            right = limit > 0.6  # the text stands on the side that has room
            axes.annotate(
                f"{name} {style.percent(limit)}",
                (100 * limit, len(found) - 0.4 + 0.45 * number),
                (-5 if right else 5, 0),
                textcoords="offset points",
                ha="right" if right else "left",
                va="center",
                fontsize=8,
                zorder=4,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            )
        names = [
            group.name + ("" if group.feature_sharing else "\n(nothing lent)") for group in found
        ]
        axes.set_yticks(range(len(found)), names[::-1])
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set_ylim(-0.6, len(found) - 0.5 + 0.45 * len(limits))
        axes.set_xlim(0, 100)
        axes.set_xlabel("mIoU on test, %")
        axes.set_title("Several seeds, and what cannot be passed" if limits else "Several seeds")
    return drawn


def growth(frame: pd.DataFrame) -> Figure:
    """Three panels over the image's side, both axes logarithmic."""
    with mpl.rc_context(style.RC):
        drawing = Figure(figsize=(12, 4.9), layout="constrained")
        panels = drawing.subplots(1, len(QUANTITIES))
        runs = list(dict.fromkeys(frame.run))
        colours = mpl.colormaps["tab10"].colors  # type: ignore[attr-defined]
        dashes = ("-", (0, (4, 2)), (0, (1, 1.5)))
        for axes, (name, (heading, unit)) in zip(panels, QUANTITIES.items(), strict=True):
            for number, run in enumerate(runs):
                own = frame[frame.run == run].sort_values("side_px")
                paint = {"color": colours[number % 10], "ls": dashes[number % len(dashes)]}
                axes.plot(own.side_px, own[name], label=run, lw=1.7, **paint)
                worked = own[own.worked_out]
                further = own[~own.worked_out]
                axes.scatter(worked.side_px, worked[name], s=16, color=paint["color"], zorder=3)
                axes.scatter(
                    further.side_px,
                    further[name],
                    s=18,
                    facecolor="white",
                    edgecolor=paint["color"],
                    zorder=3,
                )
            _axes(axes, frame, name, heading, unit)
        handles, names = panels[0].get_legend_handles_labels()
        drawing.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)
    return drawing


def _axes(axes: Axes, frame: pd.DataFrame, name: str, heading: str, unit: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2 if unit == "B" else 10)
    axes.set_title(heading, fontweight="bold", loc="left")
    axes.set_xlabel("side of a square image, px")
    axes.xaxis.set_major_locator(FixedLocator(sorted(set(frame.side_px))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1024:g}k"))
    axes.grid(visible=True, axis="y", color="#e3e7eb", lw=0.6)
    if unit == "B":
        low, high = float(frame[name].min()), float(frame[name].max())
        powers = range(int(np.floor(np.log2(low))), int(np.ceil(np.log2(high))) + 1)
        axes.yaxis.set_major_locator(FixedLocator([2.0**p for p in powers if p % 2 == 0]))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    else:
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1e12:g} T"))
    if name == "device_bytes":
        axes.axhline(PAPER_BYTES, color=style.ERROR, lw=1, ls=(0, (5, 3)), zorder=1)
        axes.annotate(
            "2 GiB, the paper’s line",
            (0.02, PAPER_BYTES),
            (0, 3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            fontsize=8,
            color=style.ERROR,
        )


def _short(count: float) -> str:
    for size, unit in ((2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB")):
        if count >= size:
            return f"{count / size:g} {unit}"
    return f"{count / 1024:g} KiB"


def on_card(frame: pd.DataFrame) -> Figure:
    """Predicted against allocated memory, one pair of points a run: hollow where tensors alone are
    counted, filled with the copies of cuDNN's as well.

    Args:
        frame: `rows`.
    """
    known = frame.dropna(subset=["predicted_bytes", "allocated_bytes"])
    with mpl.rc_context(style.RC):
        drawn = Figure(figsize=(9, 6), layout="constrained")
        axes = drawn.subplots()
        colours = style.colours(known.method)
        in_mib = [
            [float(value) / MB for value in known[f"{name}_bytes"]]
            for name in ("allocated", "tensors", "predicted")
        ]
        ends = [0.8 * min(map(min, in_mib)), 1.25 * max(map(max, in_mib))]
        axes.plot(ends, ends, color=style.GREY, lw=1, ls=(0, (5, 3)), zorder=1)
        for method, seen, bare, whole in zip(known.method, *in_mib, strict=True):
            colour = colours[method]
            axes.plot([seen, seen], [bare, whole], color=style.PALE, lw=2, zorder=1)
            axes.scatter(seen, bare, s=34, facecolor="white", edgecolor=colour, zorder=2)
            axes.scatter(seen, whole, s=52, color=colour, edgecolor="white", lw=0.6, zorder=3)
        for axis, set_scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
            set_scale("log", base=2)
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1024:g} GiB"))
        axes.set_xlim(*ends)
        axes.set_ylim(*ends)
        axes.set_xlabel("allocated on the card: torch.cuda.max_memory_allocated")
        axes.set_title("predicted without a card", fontweight="bold", loc="left")
        keys = [axes.scatter([], [], s=52, color=paint) for paint in colours.values()]
        names = [PAPERS if n == "baselines/generic" else style.network_name(n) for n in colours]
        axes.add_artist(axes.legend(keys, names, loc="lower right", fontsize=8))
        kinds = [
            axes.scatter([], [], s=34, facecolor="white", edgecolor=style.GREY),
            axes.scatter([], [], s=52, color=style.GREY),
        ]
        axes.legend(kinds, ["tensors alone", "with cuDNN's copies"], loc="upper left", fontsize=8)
    return drawn
