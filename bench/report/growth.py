"""How memory and work grow with the image, by strategy: constant, or with every pixel."""

from collections.abc import Callable, Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from bench.record import Record
from bench.report import style

GIB = 2**30
PAPER_BYTES = 2 * GIB
"""What GLNet is said to stay under."""
QUANTITIES: Mapping[str, tuple[str, str]] = {
    "device_bytes": ("device memory, tensors", "B"),
    "host_bytes": ("host memory, tensors", "B"),
    "flops": ("operations", "FLOP"),
}
COLUMNS = (
    "run",
    "side_px",
    "patches",
    "device_bytes",
    "reserved_bytes",
    "host_bytes",
    "flops",
    "worked_out",
)
Line = Mapping[str, int]
"""Of the record: side_px, patches and, where it was worked out, the quantities."""
ROUNDING = 0.01
"""Of a quantity: a smaller change is no growth."""
CONSTANT = 0.05
"""Growth with a smaller exponent of the number of pixels is called constant."""


def points(predicted: Record | None) -> pd.DataFrame:
    """One line a run and image side.

    Where a size was not worked out (`worked_out` false), every further pixel and every further
    patch costs what it costs between the two largest sizes that were."""
    growth = predicted.values.get("growth", {}) if predicted else {}
    rows = []
    for run, lines in growth.items():
        worked = [line for line in lines if "flops" in line]
        for line in lines:
            known = "flops" in line
            values = line if known else _further(worked[-2], worked[-1], line)
            rows.append({"run": run, **values, "worked_out": known})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _further(a: Line, b: Line, size: Line) -> dict[str, int]:
    """What an image of a size that was not worked out takes, from two that were."""
    known = np.array([[line["side_px"] ** 2, line["patches"]] for line in (a, b)], float)
    wanted = np.array([size["side_px"] ** 2, size["patches"]], float)
    found = dict(size)
    for name in ("device_bytes", "reserved_bytes", "host_bytes", "flops"):
        if abs(b[name] - a[name]) <= ROUNDING * b[name]:
            found[name] = b[name]
        else:
            # Not `solve`: where patches fit the sides exactly, the two cannot be told apart.
            costs = np.linalg.lstsq(known, np.array([a[name], b[name]], float))[0]
            found[name] = round(float(wanted @ costs))
    return found


def slopes(frame: pd.DataFrame) -> pd.DataFrame:
    """One line a run: the exponent with which each quantity grows with the number of pixels, by
    least squares on the logarithms of the larger half of the sizes, and what a further pixel costs
    there."""
    rows = []
    for run, own in frame.groupby("run", sort=False):
        own = own.iloc[-max(2, (len(own) + 1) // 2) :]
        pixels = own.side_px.to_numpy(float) ** 2
        row: dict[str, Any] = {"run": run}
        for name in QUANTITIES:
            values = own[name].to_numpy(float)
            row[name] = float(np.polyfit(np.log(pixels), np.log(values), 1)[0])
            row[f"{name}_a_pixel"] = float(np.polyfit(pixels, values, 1)[0])
        rows.append(row)
    return pd.DataFrame(rows)


def law(exponent: float) -> str:
    """An exponent of the number of pixels, in the words of complexity."""
    if abs(exponent) < CONSTANT:
        return "O(1)"
    return "O(pixels)" if abs(exponent - 1) < CONSTANT else f"pixels^{exponent:.2f}"


def readable() -> Mapping[str, tuple[str, Callable[[Any], str]]]:
    """How a line of `slopes` reads."""
    columns: dict[str, tuple[str, Callable[[Any], str]]] = {"run": ("run", str)}
    for name, (heading, unit) in QUANTITIES.items():
        columns[name] = (heading, lambda v: f"{law(v)} ({abs(v):.2f})")
        where = heading.split(" ")[0] if unit == "B" else ""
        columns[f"{name}_a_pixel"] = (
            f"{where} {unit} a pixel".strip(),
            lambda v: f"{max(v, 0):,.0f}",
        )
    return columns


def figure(frame: pd.DataFrame) -> Figure:
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
