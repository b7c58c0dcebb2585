"""The charts of the report. Each public function returns a matplotlib figure; `accuracy_chart` is
also the content of the interactive figure."""

import html
import itertools
from dataclasses import replace
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from bench.report import evaluations, style
from bench.report.figures import palette, scatter
from bench.report.figures.chart import (
    GIB,
    MIB,
    PAPER_BYTES,
    Chart,
    Line,
    each,
    keys,
    linear_memory_axis,
    marks,
    memory_axis,
    percent_axis,
    rows_axis,
)
from bench.report.load_records import BASELINE, MB
from bench.report.load_records import published as published_rows

METERS = {"allocated_bytes": "allocated tensors", "nvml_bytes": "process total (NVML)"}
FIGURE1_PANELS = (
    ("a", "Accuracy against memory, all runs"),
    ("b", "Whole images: shrunk, and as they are"),
    ("c", "Patches, alone and with the whole image"),
)
_WHOLE, _PATCHES = ("downsample", "whole", "global"), ("patch", "local", "plain")
_VIEWS = {"whole image": "hollow", "patches": "solid", "both": "strong"}
"""What a strategy shows the network, and the fill of its marker."""
_LIMIT = Line(PAPER_BYTES, "2 GiB", upright=True, colour=palette.INK)
_BELOW = {"loc": "outside lower center", "ncols": 4}


def accuracy_memory(frame: pd.DataFrame, meter: str, where: str) -> Figure:
    """mIoU against peak memory, one point a run, one panel a data set.

    Args:
        frame: `table.runs`.
        meter: the column of the memory axis.
        where: the device in words, for the axis.
    """
    title = f"peak memory: {METERS.get(meter, meter)}, {where}"
    charts = [
        replace(
            accuracy_chart(own.assign(bytes=own[meter]), title, f"mIoU on {name} (test), %"),
            note="up and to the left is better  ↖",
        )
        for name, own in frame.groupby("dataset", sort=False)
    ]
    entries = max((len(chart.keys) for chart in charts), default=0)
    columns = 1 + (entries > 24)
    legend = {"loc": "outside right upper", "ncols": columns}
    size_in = 7 + 2 * columns, 5.2 * max(1, len(charts))
    return scatter.figure(charts, size_in, legend=legend)


def accuracy_chart(
    runs: pd.DataFrame, x_title: str, y_title: str, theirs: pd.DataFrame | None = None
) -> Chart:
    """mIoU against memory: runs, the Pareto front, the quality gate and the baseline.

    A run that ran out of memory is hollow and stands at the device's capacity, at the lower end
    of the axis if it has no mIoU.

    Args:
        runs: columns run, network, strategy, status, room_bytes, bytes and miou 0..1; a row
            without bytes or miou has no point.
        theirs: `published_points`; drawn behind the runs.
    """
    runs = runs.assign(bytes=runs.bytes.astype(float), y=100 * runs.miou.astype(float))
    trained = runs[runs.network != BASELINE]
    known = trained.dropna(subset=["y", "bytes"])
    baseline = runs.y[runs.network == BASELINE].dropna().tolist()
    front = evaluations.front(known, "bytes", baseline[0] / 100 if baseline else None)
    lost = trained[trained.bytes.isna() & (trained.status == "oom")]
    behind = marks([] if theirs is None else theirs)
    y = percent_axis(y_title, [*runs.y, *behind.y])
    capacity = lost.room_bytes.astype(float)
    x = memory_axis(x_title, [*known.bytes, *behind.x, *capacity.dropna()])
    on_front = known.run.isin(front)
    drawn = pd.concat(
        [
            lost.assign(
                x=capacity.fillna(x.high),
                y=lost.y.fillna(y.low + 0.03 * (y.high - y.low)),
                label=lost.run.where(lost.y.notna(), lost.run + " (no mIoU)"),
                fill="hollow",
                trace="out of memory",
            ),
            known.assign(
                x=known.bytes,
                label=known.run,
                bold=on_front,
                fill=on_front.map({True: "strong", False: "faded"}),
                trace=known.network.map(style.network_name),
            ),
        ]
    )
    drawn = marks(
        drawn,
        colour=drawn.network.map(palette.colours(drawn.network)),
        marker=drawn.strategy.map(palette.markers(drawn.strategy)),
        network=drawn.network.map(style.network_name),
        view=drawn.strategy.map(view),
    )
    best = known.set_index("run").loc[front]
    lines = [
        Line(size, f"all of the device: {style.size(size)}", upright=True)
        for size in sorted({*capacity.dropna()})
    ]
    if x.low <= PAPER_BYTES <= x.high:
        lines.append(_LIMIT)
    if len(known):
        gate_at = evaluations.GATE * known.y.max()
        lines.append(Line(gate_at, f"{100 * evaluations.GATE:.0f} % of the best", dash="dot"))
    lines += [Line(at, "baseline (class-mean colour)") for at in baseline[:1]]
    return Chart(
        x,
        y,
        pd.concat([behind, drawn], ignore_index=True),
        pd.concat(
            [
                keys(drawn, "network", "colour", heading="network"),
                keys(drawn, "strategy", "marker", heading="strategy"),
            ]
        ),
        tuple(lines),
        tuple(zip(best.bytes, best.y, strict=True)),
    )


def view(strategy: str) -> str:
    """What a strategy shows the network, a key of `_VIEWS`."""
    return "whole image" if strategy in _WHOLE else "patches" if strategy in _PATCHES else "both"


def published_points(dataset: str) -> pd.DataFrame:
    """Published results of a data set that state memory, as rows of a chart."""
    rows = published_rows().dropna(subset=["memory_mb", "miou_percent"])
    rows = rows[rows.dataset.str.lower() == dataset.lower()]
    gpus = ("a " + rows.gpu).fillna("an unnamed GPU")
    return marks(
        {"x": rows.memory_mb * MB, "y": rows.miou_percent},
        colour=palette.PUBLISHED,
        size_pt=6.5,
        layer=1,
        trace="published",
        network="published",
        view=(rows.inference == "global").map({True: "whole image", False: "patches"}),
        hover=[
            f"<b>{html.escape(row.method)}</b>, {row.inference}: published by "
            f"{html.escape(row.paper)} {row.year}<br>{row.miou_percent} % at "
            f"{style.size(row.memory_mb * MB)} on {gpu}"
            for row, gpu in zip(each(rows), gpus, strict=True)
        ],
    )


def figure1(letter: str, frame: pd.DataFrame, meter: str, where: str) -> Figure:
    """Figure 1 of the paper with our runs, at the width of a column.

    A network has a colour and a marker; the fill of the marker is what the strategy shows it.

    Args:
        letter: of FIGURE1_PANELS.
        frame: `table.runs` of one data set.
        meter: the column of the memory axis.
        where: the device in words, for the axis.
    """
    dataset = str(frame.dataset.iloc[0]) if len(frame) else ""
    chart = accuracy_chart(
        frame.assign(bytes=frame[meter]),
        f"peak memory: {METERS.get(meter, meter)}\n{where}",
        f"mIoU on {dataset} (test), %",
        published_points(dataset),
    )
    points = chart.points[chart.points.trace != "out of memory"].sort_values("x", kind="stable")
    if letter != "a":
        points = points[(points["view"] == "whole image") == (letter == "b")]
    ours = points.trace != "published"
    shapes = palette.network_markers(sorted(frame.network))
    names = {style.network_name(name): marker for name, marker in shapes.items()}
    points = points.assign(
        label="",
        marker=points.network.map(names).fillna("o"),
        fill=points["view"].map(_VIEWS).where(ours, "solid"),
        size_pt=5.2,
    )
    if letter != "a":
        points["join"] = (points.network + " " + points.encoder.fillna("")).where(ours, "")
        dashes = dict(zip(points["join"].unique(), itertools.cycle(scatter.DASHES)))
        points["dash"] = points["join"].map(dashes)
    chart = replace(
        chart,
        x=memory_axis(chart.x.title, points.x, log=True),
        points=points,
        keys=pd.concat(
            [
                keys(points.sort_values("network"), "network", "colour", "marker", "size_pt"),
                keys(points[ours], "view", "fill", "size_pt"),
            ]
        ),
        front=chart.front if letter == "a" else (),
        join_width=0.8,
    )
    legend = {**_BELOW, "ncols": 3, "columnspacing": 1.0, "handletextpad": 0.4, "handlelength": 1.5}
    drawn = scatter.figure([chart], (3.35, 3.5), legend=legend, rc=palette.COLUMN_RC)
    drawn.axes[0].tick_params(axis="x", rotation=30)
    return drawn


def paper_memory(frame: pd.DataFrame, size: tuple[int, int]) -> Figure:
    """Predicted and published device memory, one row a run.

    Args:
        frame: `paper.compare`.
        size: (H, W) of the image in pixels.
    """
    rows = frame.dropna(subset=["published_bytes"]).iloc[::-1].reset_index(drop=True)
    ours, theirs = rows.predicted_bytes.astype(float), rows.published_bytes.astype(float)
    ratio = rows.ratio.map("{:.2f} ×".format)
    common: dict[str, Any] = {"y": rows.index, "join": rows.run}
    points = pd.concat(
        [
            marks(
                {"x": ours, **common},
                colour=rows.network.map(palette.colours(rows.network)),
                label=ratio.where(ours >= theirs, ""),
                kind="predicted here: tensors",
            ),
            marks(
                {"x": theirs, **common},
                fill="ring",
                marker="D",
                label=ratio.where(ours < theirs, ""),
                kind="published: gpustat, process",
                layer=4,
            ),
        ]
    )
    top = max([GIB, *ours, *theirs])
    chart = Chart(
        linear_memory_axis("peak memory of one prediction", 0, 1.1 * top),
        rows_axis(f"Device memory at {size[0]} × {size[1]} px", rows.run),
        points,
        keys(points, "kind", "marker", "fill"),
        (_LIMIT,),
        note="0.50 ×: half of what is published",
        join_colour=palette.PALE,
        join_width=3,
    )
    return scatter.figure([chart], (9, 2 + 0.36 * max(4, len(rows))), legend=_BELOW)


def paper_model(frame: pd.DataFrame) -> Figure:
    """Modelled against published memory; within the band a row counts as explained.

    Args:
        frame: `paper.explained`.
    """
    points = marks(
        {"x": frame.published_mb * MIB, "y": frame.modelled_mb * MIB},
        colour=frame.network.map(palette.colours(frame.network)),
        marker=frame.strategy.map(palette.markers(frame.strategy)),
        network=frame.network.map(style.network_name),
        strategy=frame.strategy,
    )
    legends = [
        keys(points, "network", "colour", heading="network"),
        keys(points, "strategy", "marker", heading="strategy"),
    ]
    axis = memory_axis("published: gpustat", [*points.x, *points.y], log=True)
    chart = Chart(
        axis,
        replace(axis, title="modelled: one model for all rows"),
        points,
        pd.concat(legends),
        note="band: within 15 %",
        diagonal=0.15,
    )
    return scatter.figure([chart], (9, 6), legend={"loc": "outside right upper"})


def on_gpu(frame: pd.DataFrame) -> Figure:
    """Predicted against allocated memory: hollow for tensors alone, filled with cuDNN's copies.

    Args:
        frame: `on_gpu.rows`.
    """
    known = frame.dropna(subset=["predicted_bytes", "allocated_bytes"]).reset_index(drop=True)
    method = known.method.str.rpartition("/")[2]
    rows = marks(
        {"x": known.allocated_bytes.astype(float), "join": known.index.astype(str)},
        colour=method.map(palette.colours(method)),
        method=method.map(style.network_name).replace("generic", "baselines of the GLNet paper"),
    )
    points = pd.concat(
        [
            rows.assign(y=known.tensors_bytes.astype(float), fill="hollow", kind="tensors alone"),
            rows.assign(y=known.predicted_bytes.astype(float), kind="with cuDNN's copies"),
        ]
    ).assign(size_pt=6.5)
    axis = memory_axis("allocated on the GPU: torch.cuda.max_memory_allocated",
                       [*points.x, *points.y], log=True)  # fmt: skip
    chart = Chart(
        axis,
        replace(axis, title="predicted without a GPU"),
        points,
        pd.concat([keys(points, "method", "colour"), keys(points, "kind", "fill")]),
        diagonal=0,
        join_colour=palette.PALE,
        join_width=2,
    )
    return scatter.figure([chart], (9, 6), legend={"loc": "outside right upper"})


def published(frame: pd.DataFrame) -> Figure:
    """Figure 1 of the paper, its results and ours: whole images in one panel, patches in the other.

    Args:
        frame: `verdict.rows`; rows without published memory are left out.
    """
    rows = frame.dropna(subset=["published_bytes"]).sort_values("published_bytes", kind="stable")
    rows = rows.assign(
        join=rows.network,
        colour=rows.network.map(palette.colours(frame.network)),
        name=rows.network.map(style.network_name),
        whole=rows.published.str.endswith("/ global"),
    )
    theirs = marks(
        rows.assign(x=rows.published_bytes.astype(float), y=100 * rows.published_miou),
        fill="ring", marker="D", dash="dash", kind="published", layer=4,
        label=rows.name.where(~rows.duplicated(["network", "whole"], keep="last"), ""),
    )  # fmt: skip
    ours = marks(
        rows.assign(
            x=rows.nvml_bytes.astype(float), y=100 * rows.miou, join=rows.network + " of ours"
        ),
        kind="ours",
    ).dropna(subset=["x", "y"])
    points = pd.concat([theirs, ours])
    legend = keys(points, "kind", "marker", "fill")
    top = 1.1 * max([GIB, *points.x])
    y = percent_axis("mIoU, %: ", points.y, 0.12)
    charts = [
        Chart(
            linear_memory_axis("process total (NVML, gpustat)", 0, top),
            replace(y, title=y.title + title),
            points[points.whole == whole],
            legend,
        )
        for title, whole in (("whole images", True), ("patches, and GLNet", False))
    ]
    return scatter.figure(charts, (9, 4.6), 2, legend=_BELOW)
