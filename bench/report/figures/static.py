"""The static figures. Each function returns a matplotlib figure; `render` makes files of it."""

import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from bench.files import write_bytes
from bench.record import Record
from bench.report import style

Drawing = Callable[[], Figure]
GIB = 2**30
# Hollow, so that it is seen around a prediction that hits it.
_PUBLISHED: dict[str, Any] = {
    "s": 66,
    "marker": "D",
    "facecolor": "none",
    "edgecolor": style.PAPER,
    "linewidth": 1.6,
    "zorder": 4,
}
COLUMNS = 4
PNG_DPI = 200
_CANVASES: Mapping[str, Any] = {
    "svg": FigureCanvasSVG,
    "png": FigureCanvasAgg,
    "pdf": FigureCanvasPdf,
}
_NO_DATES: dict[str, dict[str, None]] = {
    "svg": dict.fromkeys(("Date", "Creator", "Format", "Type")),
    "png": {"Software": None},
    "pdf": dict.fromkeys(("CreationDate", "Creator", "Producer")),
}


def render(figure: Figure, kinds: Sequence[str]) -> dict[str, bytes]:
    """Kind -> file content, the same bytes for the same figure; `kinds`: svg, png, pdf."""
    files: dict[str, bytes] = {}
    with mpl.rc_context(style.RC):
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # it has done its work, and every file would do it again
        for kind in kinds:
            if kind == "png":
                figure.set_dpi(PNG_DPI)
            buffer = io.BytesIO()
            # Not savefig, which draws once for nothing before it draws.
            getattr(_CANVASES[kind](figure), f"print_{kind}")(buffer, metadata=_NO_DATES[kind])
            files[kind] = buffer.getvalue()
    return files


@contextmanager
def written(drawings: Mapping[str, Drawing], folder: Path) -> Iterator[None]:
    """Draw figures and make files of them, NAME.KIND below `folder`, while the block does something
    else; they are there at its end. The curves of training have no PDF: too many points for it.

    Processes are forked that have what is drawn already, so this is for a program with one thread;
    where there is no fork, or only one core, the files are made first."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if "fork" not in get_all_start_methods() or cores < 2 or sys.platform != "linux":
        for name in drawings:
            _write(drawings, folder, name)
        yield
        return
    with warnings.catch_warnings():
        # From Python 3.12 on it warns of threads, of which there are those of a library at rest.
        warnings.simplefilter("ignore", DeprecationWarning)
        pool = get_context("fork").Pool(min(cores, len(drawings)), _inherit, (drawings, folder))
    with pool:
        under_way = pool.map_async(_write_inherited, drawings, chunksize=1)
        yield
        under_way.get()


_inherited: tuple[Mapping[str, Drawing], Path]


def _inherit(drawings: Mapping[str, Drawing], folder: Path) -> None:
    global _inherited
    _inherited = drawings, folder


def _write_inherited(name: str) -> None:
    _write(*_inherited, name)


def _write(drawings: Mapping[str, Drawing], folder: Path, name: str) -> None:
    kinds = ("svg", "png") if name == "training" else ("svg", "png", "pdf")
    for kind, content in render(drawings[name](), kinds).items():
        write_bytes(folder / f"{name}.{kind}", content)


def paper_memory(frame: pd.DataFrame, size: tuple[int, int]) -> Figure:
    """Predicted device memory beside the paper's, one line a run that the paper has a number for.

    Args:
        frame: `paper.compare`.
        size: (H, W) of the image in pixels.
    """
    rows = frame.dropna(subset=["published_bytes"]).iloc[::-1].reset_index(drop=True)
    with mpl.rc_context(style.RC):
        figure = Figure(figsize=(9, 1.6 + 0.36 * max(4, len(rows))), layout="constrained")
        axes = figure.subplots()
        colours = style.colours(rows.network)
        edge: dict[str, Any] = {"edgecolor": "white", "linewidth": 0.6}
        for y, (_, row) in enumerate(rows.iterrows()):
            ours, theirs = row.predicted_bytes / GIB, row.published_bytes / GIB
            axes.plot([ours, theirs], [y, y], color=style.PALE, lw=3, zorder=1)
            axes.scatter(ours, y, s=80, color=colours[row.network], zorder=3, **edge)
            axes.scatter(theirs, y, **_PUBLISHED)
            axes.annotate(
                f"{row.ratio:.2f} ×",
                (max(ours, theirs), y),
                (9, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=style.GREY,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            )
        axes.axvline(2, color=style.INK, lw=1, ls=(0, (5, 3)), zorder=0)
        axes.annotate(
            "2 GiB",
            (2, 1),
            (4, -2),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            va="top",
            fontsize=8,
        )
        axes.set_yticks(range(len(rows)), list(rows.run))  # two runs may share network and strategy
        for tick, network in zip(axes.get_yticklabels(), rows.network, strict=True):
            tick.set_fontweight("bold" if network == "glnet" else "normal")
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set_ylim(-0.7, max(3, len(rows)) - 0.1)
        axes.margins(x=0.09)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} GiB"))
        axes.set_title(f"Device memory at {size[0]} × {size[1]} px", fontweight="bold", pad=10)
        axes.set_title("0.50 ×: half of what is published", loc="right", color=style.GREY)
        axes.set_xlabel("peak memory of one prediction")
        ours_key = axes.scatter([], [], s=80, color=style.INK, **edge)
        theirs_key = axes.scatter([], [], **_PUBLISHED)
        axes.legend(
            [ours_key, theirs_key],
            ["predicted here: tensors, in the network's colour", "published: gpustat, process"],
            loc="lower right",
        )
    return figure


def paper_model(frame: pd.DataFrame) -> Figure:
    """Modelled against published memory, one point a row; within the band a row is explained.

    Args:
        frame: `paper.explained`.
    """
    with mpl.rc_context(style.RC):
        figure = Figure(figsize=(9, 6), layout="constrained")
        axes = figure.subplots()
        colours = style.colours(frame.network)
        markers = style.markers(frame.strategy)
        values = pd.concat([frame.published_mb, frame.modelled_mb])
        ends = [0.85 * values.min(), 1.18 * values.max()]
        axes.fill_between(
            ends, [0.85 * v for v in ends], [1.15 * v for v in ends], color="#eef2f6", lw=0
        )
        axes.plot(ends, ends, color=style.GREY, lw=1, ls=(0, (5, 3)), zorder=1)
        for _, row in frame.iterrows():
            axes.scatter(
                row.published_mb,
                row.modelled_mb,
                s=60,
                color=colours[row.network],
                marker=markers[row.strategy],
                edgecolor="white",
                linewidth=0.6,
                zorder=3,
            )
        for axis, set_scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
            set_scale("log", base=2)
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1024:g} GiB"))
        axes.set_xlim(*ends)
        axes.set_ylim(*ends)
        axes.set_xlabel("published: gpustat")
        axes.set_title("modelled: one model for all rows", fontweight="bold", loc="left")
        axes.annotate("within 15 %", (0.02, 0.96), xycoords="axes fraction", color=style.GREY)
        keys = [axes.scatter([], [], s=60, color=paint) for paint in colours.values()]
        named = axes.legend(
            keys, [style.network_name(n) for n in colours], loc="lower right", fontsize=8
        )
        axes.add_artist(named)
        shapes = [
            axes.scatter([], [], s=60, color=style.GREY, marker=mark) for mark in markers.values()
        ]
        axes.legend(shapes, list(markers), loc="lower center", fontsize=8)
    return figure


def published(frame: pd.DataFrame) -> Figure:
    """Figure 1 of the paper, theirs and ours: whole images in one panel, patches in the other, a
    network's points joined.

    Args:
        frame: `verdict.rows`; a row without published memory has no place here.
    """
    rows = frame.dropna(subset=["published_bytes"]).sort_values("published_bytes", kind="stable")
    rows = rows.assign(method=rows.published.str.rsplit(" / ", n=1).str[0])
    whole = rows.published.str.endswith("/ global")
    with mpl.rc_context(style.RC):
        figure = Figure(figsize=(9, 4.4), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        colours = style.colours(frame.network)
        titles = ("whole images", "patches, and GLNet")
        for axes, title, part in zip(panels, titles, (rows[whole], rows[~whole]), strict=True):
            for network, points in part.groupby("network", sort=False):
                colour = colours[str(network)]
                x, y = points.published_bytes / GIB, 100 * points.published_miou
                axes.plot(x, y, color=colour, lw=1, ls=(0, (4, 3)), zorder=1)
                axes.scatter(x, y, **{**_PUBLISHED, "edgecolor": colour})
                axes.annotate(
                    style.network_name(str(network)) if len(points) > 1 else points.method.iloc[0],
                    (x.iloc[-1], y.iloc[-1]),
                    (0, 8),
                    textcoords="offset points",
                    ha="center",
                    fontsize=7,
                    color=colour,
                )
                ours = points.dropna(subset=["nvml_bytes", "miou"])
                x, y = ours.nvml_bytes / GIB, 100 * ours.miou
                axes.plot(x, y, color=colour, lw=1.2, zorder=2)
                axes.scatter(x, y, s=50, color=colour, zorder=5)
            axes.set_title(title, fontweight="bold", pad=10)
            axes.set_xlabel("memory that the card saw")
            axes.set_xlim(left=0)
            axes.margins(y=0.12)
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} GiB"))
        panels[0].set_ylabel("mIoU, %")
        theirs_key = panels[1].scatter([], [], **{**_PUBLISHED, "edgecolor": style.INK})
        ours_key = panels[1].scatter([], [], s=50, color=style.INK)
        panels[1].legend([theirs_key, ours_key], ["published", "ours"], loc="lower right")
    return figure


def training(records: Mapping[str, Record | None]) -> Figure:
    """Loss by step, one panel a model, phases side by side; a model that learns in one step has no
    curve."""
    curves = {
        name: [(phase, float(loss)) for phase, _, loss in found.values["loss"]]
        for name, found in records.items()
        if found and len(found.values.get("loss", [])) > 1
    }
    with mpl.rc_context(style.RC):
        figure = Figure(layout="constrained")
        places = _places([_width(curve) for curve in curves.values()])
        lines = 1 + max((line for line, _, _ in places), default=0)
        figure.set_size_inches(9, 0.3 + 1.75 * lines)
        grid = figure.add_gridspec(lines, COLUMNS)
        for (name, curve), (line, first, last) in zip(curves.items(), places, strict=True):
            _curve(figure.add_subplot(grid[line, first:last]), name, curve)
        if curves:
            figure.supxlabel("step", fontsize=9)
            figure.supylabel("loss", fontsize=9)
        else:
            figure.text(0.5, 0.5, "no training has been recorded", ha="center", color=style.GREY)
    return figure


def _width(curve: Sequence[tuple[str, float]]) -> int:
    """Columns that a curve takes: room for the names of its phases."""
    return 2 if len({phase for phase, _ in curve}) > 1 else 1


def _places(widths: Sequence[int]) -> list[tuple[int, int, int]]:
    """(line, first column, column after the last) of panels set one after another."""
    found: list[tuple[int, int, int]] = []
    line = column = 0
    for width in widths:
        if column + width > COLUMNS:
            line, column = line + 1, 0
        found.append((line, column, column + width))
        column += width
    return found


def _curve(axes: Axes, name: str, curve: Sequence[tuple[str, float]]) -> None:
    loss = pd.Series([value for _, value in curve])
    phase = pd.Series([phase for phase, _ in curve])
    several = phase.nunique() > 1
    for number, (label, part) in enumerate(loss.groupby(phase, sort=False)):
        colour = (style.HEAT, style.GLNET, "#009e73", "#cc79a7")[number % 4]
        axes.plot(part.index, part, color=colour, lw=0.7, alpha=0.35)
        smooth = part.rolling(max(1, len(part) // 10), min_periods=1, center=True).mean()
        axes.plot(part.index, smooth, color=colour, lw=1.6)
        if several:
            middle = (part.index[0] + part.index[-1]) / 2
            axes.text(
                middle,
                1.0,
                str(label).replace("-to-", "→"),
                color=colour,
                fontsize=7,
                ha="center",
                va="bottom",
                transform=axes.get_xaxis_transform(),
            )
            if number:
                axes.axvline(part.index[0] - 0.5, color=style.PALE, lw=1)
    axes.set_title(name, fontsize=8, fontweight="bold", pad=15)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.tick_params(labelsize=7)
