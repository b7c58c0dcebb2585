"""Accuracy against memory: the static figures, and figure 1 of the paper."""

import html
import itertools
from dataclasses import replace

import pandas as pd
from matplotlib.figure import Figure

from bench.report import evaluations, style
from bench.report.figures import palette, static
from bench.report.figures.chart import (
    PAPER_BYTES,
    Chart,
    Line,
    each,
    keys,
    marks,
    memory_axis,
    percent_axis,
)
from bench.report.load_records import BASELINE
from bench.report.load_records import published as published_rows

FIGURE1_PANELS = (
    ("a", "Accuracy against memory, all runs"),
    ("b", "Whole images: shrunk, and as they are"),
    ("c", "Patches, alone and with the whole image"),
)
LIMIT = Line(PAPER_BYTES, "2 GiB", upright=True, colour=palette.INK)
VIEWS = {"whole image": "hollow", "patches": "solid", "both": "strong"}
"""What a strategy shows the network, and the fill of its marker."""
_SHOWN = dict.fromkeys(("downsample", "whole", "global"), "whole image")
_SHOWN |= dict.fromkeys(("patch", "local", "plain"), "patches")
_AXIS = {"allocated_bytes": "allocated tensors", "nvml_bytes": "process total (NVML)"}


def accuracy_memory(frame: pd.DataFrame, meter: str, where: str) -> Figure:
    """mIoU against peak memory, one point a run, one panel a data set.

    Args:
        frame: `table.runs`.
        meter: the column of the memory axis.
        where: the device in words, for the axis.
    """
    title = f"peak memory: {_AXIS.get(meter, meter)}, {where}"
    charts = [
        replace(
            accuracy_chart(
                own.assign(
                    bytes=own[meter],
                    low=100 * own.miou_low.astype(float),
                    high=100 * own.miou_high.astype(float),
                ),
                title,
                f"mIoU on {name} (test), %, with 95 % CI",
            ),
            note="up and to the left is better  ↖",
        )
        for name, own in frame.groupby("dataset", sort=False)
    ]
    columns = 1 + any(len(chart.keys) > 24 for chart in charts)
    legend = {"loc": "outside right upper", "ncols": columns}
    return static.figure(charts, (7 + 2 * columns, 5.2 * max(1, len(charts))), legend=legend)


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
    runs = runs.assign(x=runs.bytes.astype(float), y=100 * runs.miou.astype(float), label=runs.run)
    trained = runs[runs.network != BASELINE]
    known = trained.dropna(subset=["y", "x"])
    baseline = runs.y[runs.network == BASELINE].dropna().tolist()
    front = evaluations.front(known, "bytes", baseline[0] / 100 if baseline else None)
    lost = trained[trained.bytes.isna() & (trained.status == "oom")]
    behind = marks([] if theirs is None else theirs)
    ends = [end for name in ("low", "high") if name in runs for end in runs[name]]
    y = percent_axis(y_title, [*runs.y, *behind.y, *ends])
    capacity = lost.room_bytes.astype(float)
    x = memory_axis(x_title, [*known.x, *behind.x, *capacity.dropna()])
    on_front = known.run.isin(front)
    lost = lost.assign(
        x=capacity.fillna(x.high),
        y=lost.y.fillna(y.low + 0.03 * (y.high - y.low)),
        label=lost.run.where(lost.y.notna(), lost.run + " (no mIoU)"),
        fill="hollow",
        trace="out of memory",
    )
    named = on_front | (known.network == "glnet") | _best_of_its_network(known)
    known = known.assign(
        label=known.label.where(named, ""),
        bold=on_front,
        fill=on_front.map({True: "strong", False: "faded"}),
        trace=known.network.map(style.network_name),
    )
    drawn = marks(looks(pd.concat([lost, known])))
    best = known.set_index("run").loc[front]
    devices = [
        Line(size, f"all of the device: {style.size(size)}", upright=True)
        for size in sorted({*capacity.dropna()})
    ]
    share = evaluations.GATE
    gate = Line(share * known.y.max(), f"{100 * share:.0f} % of the best", dash="dot")
    lines = (
        *devices,
        *([LIMIT] if x.low <= PAPER_BYTES <= x.high else []),
        *([gate] if len(known) else []),
        *(Line(at, "baseline (class-mean colour)") for at in baseline[:1]),
    )
    points = pd.concat([behind, drawn], ignore_index=True)
    return Chart(x, y, points, legend(drawn), lines, tuple(zip(best.x, best.y, strict=True)))


def _best_of_its_network(known: pd.DataFrame) -> pd.Series:
    best: pd.Series = known.y == known.groupby("network").y.transform("max")
    return best


def looks(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with the colour of their network, its name as papers spell it, the marker of their
    strategy, and what that shows the network."""
    return rows.assign(
        colour=rows.network.map(palette.colours(rows.network)),
        marker=rows.strategy.map(palette.markers(rows.strategy)),
        network=rows.network.map(style.network_name),
        view=rows.strategy.map(_SHOWN).fillna("both"),
    )


def legend(drawn: pd.DataFrame) -> pd.DataFrame:
    """Keys of points that have `looks`."""
    networks = keys(drawn, "network", "colour", heading="network")
    return pd.concat([networks, keys(drawn, "strategy", "marker", heading="strategy")])


def published_points(dataset: str) -> pd.DataFrame:
    """Published results of a data set that state memory, as rows of a chart."""
    rows = published_rows().dropna(subset=["bytes", "miou_percent"])
    rows = rows[rows.dataset.str.lower() == dataset.lower()]
    return marks(
        {"x": rows.bytes.astype(float), "y": rows.miou_percent},
        colour=palette.PUBLISHED,
        size_pt=6.5,
        layer=1,
        trace="published",
        network="published",
        view=(rows.inference == "global").map({True: "whole image", False: "patches"}),
        hover=[
            f"<b>{html.escape(row.method)}</b>, {row.inference}: published by "
            f"{html.escape(row.paper)} {row.year}<br>{row.miou_percent} % at "
            f"{style.size(row.bytes)} on {'an unnamed GPU' if pd.isna(row.gpu) else f'a {row.gpu}'}"
            for row in each(rows)
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
        f"peak memory: {_AXIS.get(meter, meter)}\n{where}",
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
        fill=points["view"].map(VIEWS).where(ours, "solid"),
        size_pt=5.2,
    )
    if letter != "a":
        points["join"] = (points.network + " " + points.encoder.fillna("")).where(ours, "")
        dashes = dict(zip(points["join"].unique(), itertools.cycle(static.DASHES)))
        points["dash"] = points["join"].map(dashes)
    networks = keys(points.sort_values("network"), "network", "colour", "marker", "size_pt")
    chart = replace(
        chart,
        x=memory_axis(chart.x.title, points.x, log=True),
        points=points,
        keys=pd.concat([networks, keys(points[ours], "view", "fill", "size_pt")]),
        front=chart.front if letter == "a" else (),
        join_width=0.8,
    )
    spaces = {"columnspacing": 1.0, "handletextpad": 0.4, "handlelength": 1.5}
    below = {"loc": "outside lower center", "ncols": 3, **spaces}
    drawn = static.figure([chart], (3.35, 3.5), legend=below, rc=palette.COLUMN_RC)
    drawn.axes[0].tick_params(axis="x", rotation=30)
    return drawn
