"""Charts of predicted and published memory, of growth, of several seeds and of classes."""

import html
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from bench.report import evaluations, style
from bench.report.evaluations import ONE_VIEW, Group
from bench.report.figures import interactive, palette, static
from bench.report.figures.accuracy import (
    LIMIT,
    accuracy_chart,
    legend,
    looks,
    menus,
    meter_name,
    published_points,
)
from bench.report.figures.chart import (
    GIB,
    MIB,
    PAPER_BYTES,
    Axis,
    Chart,
    Line,
    keys,
    linear_memory_axis,
    marks,
    memory_axis,
    percent_axis,
    rows_axis,
)
from bench.report.section import Plot, descriptions

FIGURE1_PANELS = (
    ("a", "Accuracy against memory, all runs"),
    ("b", "Whole images: shrunk, and as they are"),
    ("c", "Patches, alone and with the whole image"),
)
PAPER_METERS = ("nvml", "allocated", "predicted")
"""Of the figure at the paper's image size, the first of which there are numbers first."""
QUANTITIES = {
    "device_bytes": ("device memory, tensors", "B"),
    "host_bytes": ("host memory, tensors", "B"),
    "flops": ("operations", "FLOP"),
}
"""Columns of `growth.points`: (heading, unit)."""
TOOLS = {
    "predicted": ("predicted here", "o", palette.BLUE),
    "memtracker": ("MemTracker", "^", "#e69f00"),
    "kitsune": ("torch-kitsune", "s", "#009e73"),
    "torchinfo": ("torchinfo", "X", palette.GREY),
}
"""Of the table `estimates`: name, marker and colour by column."""
_BELOW = {"loc": "outside lower center", "ncols": 4}
_PUBLISHED: Any = {"fill": "ring", "marker": "D", "layer": 4}
_GROWTH = (*palette.PHASES, "#e69f00", "#56b4e9", "#332288", "#882255", "#117733", "#8c6d31")


def paper_memory(frame: pd.DataFrame, size: tuple[int, int]) -> Figure:
    """Predicted and published device memory, one row a run.

    Args:
        frame: `paper.compare`.
        size: (H, W) of the image in pixels.
    """
    rows = frame.dropna(subset=["published_bytes"]).iloc[::-1].reset_index(drop=True)
    rows = marks(rows, y=rows.index, join=rows.run, text=rows.ratio.map("{:.2f} ×".format))
    ours, theirs = rows.predicted_bytes.astype(float), rows.published_bytes.astype(float)
    predicted = rows.assign(
        x=ours,
        colour=rows.network.map(palette.colours(rows.network)),
        label=rows.text.where(ours >= theirs, ""),
        kind="predicted here: tensors",
    )
    label = rows.text.where(ours < theirs, "")
    published = rows.assign(x=theirs, label=label, kind="published: gpustat, process", **_PUBLISHED)
    points = pd.concat([predicted, published])
    chart = Chart(
        linear_memory_axis("peak memory of one prediction", 0, 1.1 * max([GIB, *points.x])),
        rows_axis(f"Device memory at {size[0]} × {size[1]} px", rows.run),
        points,
        keys(points, "kind", "marker", "fill"),
        (LIMIT,),
        note="0.50 ×: half of what is published",
        join_colour=palette.PALE,
        join_width=3,
    )
    return static.figure([chart], (9, 2 + 0.36 * max(4, len(rows))), legend=_BELOW)


def paper_model(frame: pd.DataFrame) -> Figure:
    """Modelled against published memory; within the band a row counts as explained.

    Args:
        frame: `paper.explained`.
    """
    points = marks(looks(frame), x=frame.published_mb * MIB, y=frame.modelled_mb * MIB)
    axes = "published: gpustat", "modelled: one model for all rows"
    return _against(axes, points, legend(points), diagonal=0.15, note="band: within 15 %")


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
        size_pt=6.5,
    )
    tensors = rows.assign(y=known.tensors_bytes.astype(float), fill="hollow", kind="tensors alone")
    copies = rows.assign(y=known.predicted_bytes.astype(float), kind="with cuDNN's copies")
    points = pd.concat([tensors, copies])
    axes = "allocated on the GPU: torch.cuda.max_memory_allocated", "predicted without a GPU"
    entries = pd.concat([keys(points, "method", "colour"), keys(points, "kind", "fill")])
    return _against(axes, points, entries, diagonal=0, join_colour=palette.PALE, join_width=2)


def estimates(frame: pd.DataFrame) -> Figure:
    """What several tools say of networks of other projects, against what was allocated.

    Args:
        frame: `memory.estimates_section`.
    """
    of_tools = [
        marks(
            {"x": frame.allocated_bytes, "y": frame[f"{tool}_bytes"]},
            tool=name,
            marker=marker,
            colour=colour,
            fill="pale" if tool != "predicted" else "full",
            size_pt=5.0,
        )
        for tool, (name, marker, colour) in reversed(TOOLS.items())
    ]
    points = pd.concat(of_tools).dropna(subset=["x", "y"]).astype({"x": float, "y": float})
    axes = "allocated: torch's CPU allocator, weights and inputs", "predicted by each tool"
    return _against(axes, points, keys(points, "tool", "marker", "colour"), diagonal=0)


def _against(
    titles: tuple[str, str], points: pd.DataFrame, entries: pd.DataFrame, **more: Any
) -> Figure:
    """One quantity of bytes against another, on the same axis; `more`: fields of `Chart`."""
    axis = memory_axis(titles[0], [*points.x, *points.y], log=True)
    chart = Chart(axis, replace(axis, title=titles[1]), points, entries, **more)
    return static.figure([chart], (9, 6), legend={"loc": "outside right upper"})


def figure1(letter: str, frame: pd.DataFrame, meter: str, where: str) -> Figure:
    """Figure 1 of the paper with our runs, at the width of a column.

    Args:
        letter: of FIGURE1_PANELS.
        frame: `evaluations.seeds_as_one` of one data set.
        meter: the column of the memory axis.
        where: the device in words, for the axis.
    """
    dataset = str(frame.dataset.iloc[0]) if len(frame) else ""
    chart = accuracy_chart(
        frame.assign(bytes=frame[meter]),
        f"peak memory: {meter_name(meter)}\n{where}",
        f"mIoU on {dataset} (test), %",
        published_points(dataset),
    )
    points = chart.points[chart.points.trace != "out of memory"].sort_values("x", kind="stable")
    if letter != "a":
        points = points[(points["view"] == "whole image") == (letter == "b")]
    ours = points.trace != "published"
    named = points.bold.astype(bool) | (points.trace == style.network_name("glnet"))
    points = points.assign(label=points.label.where(named, ""), size_pt=5.2)
    if letter != "a":
        points["join"] = (points.network + " " + points.encoder.fillna("")).where(ours, "")
        dashes = dict(zip(points["join"].unique(), itertools.cycle(static.DASHES)))
        points["dash"] = points["join"].map(dashes)
    x = memory_axis(chart.x.title, points.x, log=True)
    chart = replace(
        chart,
        x=x,
        lines=tuple(one for one in chart.lines if not one.upright or x.low <= one.at <= x.high),
        points=points,
        keys=legend(points[ours].sort_values("network")).assign(size_pt=5.2),
        front=letter == "a",
        join_width=0.8,
    )
    spaces = {"columnspacing": 1.0, "handletextpad": 0.4, "handlelength": 1.5}
    below = {"loc": "outside lower center", "ncols": 3, **spaces}
    drawn = static.figure([chart], (3.35, 4.6), legend=below, rc=palette.COLUMN_RC)
    drawn.axes[0].tick_params(axis="x", rotation=30)
    return drawn


def paper_accuracy(frame: pd.DataFrame) -> Figure:
    """`paper_chart` with the first meter of which there are numbers."""
    legend = {"loc": "outside right upper"}
    return static.figure([paper_chart(frame, _known(frame)[0])], (9.5, 6), legend=legend)


def paper_plot(frame: pd.DataFrame) -> Plot:
    """The same to look into, with a switch of the meter."""
    variants = {}
    for meter in _known(frame):
        chart = paper_chart(frame, meter)
        x = replace(chart.x, title=chart.x.title.replace(", ", "<br>"))  # as wide as a phone
        variants[meter] = interactive.scatter(replace(chart, x=x)) | {"note": ""}
    menu, *_ = descriptions()["menus"]
    shown = menu | {"texts": {one: menu["texts"][one] for one in variants}}
    alt = "Published mIoU against memory, one point a published setting"
    content = {"variants": variants, "hover": {}, "pages": {}}
    return Plot("drawn-paper", alt, content, menus([shown], variants))


def _known(frame: pd.DataFrame) -> list[str]:
    return [one for one in PAPER_METERS if frame[f"{one}_bytes"].notna().any()]


def paper_chart(frame: pd.DataFrame, meter: str) -> Chart:
    """Published mIoU against memory at the paper's image size; a ring, joined to it, at the published
    memory. Named are the front, GLNet, and the best of each network.

    Args:
        frame: `memory.paper_accuracy_section`.
        meter: of PAPER_METERS.
    """
    own = f"{meter}_bytes"
    frame = frame.dropna(subset=[own]).reset_index(drop=True)
    best = ~frame.sort_values("published_miou", ascending=False).duplicated("network").sort_index()
    miou = frame.published_miou.astype(float)
    front = evaluations.front(frame.assign(miou=miou), own, None)
    rows = looks(frame)
    bold = rows.run.isin(front)
    rows = marks(rows, y=100 * miou, join=rows.run, bold=bold, size_pt=7.5)
    several = frame.network.duplicated(keep=False)
    named = bold | best | (frame.network == "glnet")
    ours = rows.assign(
        x=frame[own].astype(float),
        trace=rows.network,
        label=(rows.network + (", " + rows.strategy).where(several, "")).where(named, ""),
        fill=bold.map({True: "strong", False: "full"}),
    )
    theirs = rows.assign(x=frame.published_bytes.astype(float), fill="ring", size_pt=5.0, layer=2)
    theirs = theirs.dropna(subset=["x"])
    theirs = theirs.assign(label="", bold=False, trace="memory as published")
    points = pd.concat([theirs, ours])
    told = (points.run + ": " + points.published).map(html.escape)
    points = points.assign(run="", hover=told)
    return Chart(
        memory_axis(
            f"{meter_name(meter)}, {frame.card.iloc[0]}",
            [0.75 * points.x.min(), *points.x],
            log=True,
        ),
        percent_axis("mIoU on DeepGlobe as published, %", points.y),
        points,
        pd.concat(
            [legend(ours), keys(theirs.assign(colour=palette.GREY, marker="o"), "trace", "fill")]
        ),
        (LIMIT,),
        front=True,
        note="up and to the left is better  ↖",
        join_width=0.8,
    )


def growth(frame: pd.DataFrame) -> Figure:
    """Memory and operations over the side of a square image, one panel a quantity; a hollow point
    is extrapolated.

    Args:
        frame: `growth.points`.
    """
    number = pd.Series(pd.factorize(frame.run)[0], frame.index)
    rows = marks(
        {"x": frame.side_px, "join": frame.run},
        colour=number.map(lambda n: _GROWTH[n % len(_GROWTH)]),
        dash=number.map(lambda n: list(static.DASHES)[n % len(static.DASHES)]),
        fill=frame.worked_out.map({True: "solid", False: "hollow"}),
        size_pt=4.0,
    )
    sides = {float(side): f"{side / 1024:g}k" for side in sorted(set(frame.side_px))}
    x = Axis("side of a square image, px", 0.9 * min(sides), 1.1 * max(sides), True, sides)
    limit = Line(PAPER_BYTES, "2 GiB, the limit of the paper", colour=palette.ERROR)
    charts = []
    for name, (title, unit) in QUANTITIES.items():
        points = rows.assign(y=frame[name].astype(float))
        y = memory_axis(title, points.y, log=True)
        if unit != "B":
            ticks = [10.0**k for k in range(5, 22) if y.low <= 10**k <= y.high]
            y = replace(y, ticks={tick: f"{tick / 1e12:g} T" for tick in ticks})
        lines = (limit,) if name == "device_bytes" else ()
        charts.append(Chart(x, y, points, lines=lines, join_width=1.7))
    return static.figure(charts, (12, 4.9), 3, legend=_BELOW)


def seeds(found: Sequence[Group], limits: Mapping[str, float]) -> Figure:
    """A point a seed, one row a group, with the mean; ceilings of the data set as upright lines."""
    groups = list(reversed(found))
    shapes = palette.markers(group.strategy for group in groups)
    colours = palette.colours(group.network for group in groups)
    rows = []
    for y, group in enumerate(groups):
        own = group.feature_sharing or group.strategy in ONE_VIEW
        colour = colours[group.network] if own else palette.GREY
        look = {"y": y, "join": group.name, "colour": colour}
        look |= {"marker": shapes[group.strategy], "label": "", "bold": False}
        rows.append({**look, "x": 0.0, "marker": ""})
        rows += [{**look, "x": 100 * miou} for miou in sorted(group.mious)]
        rows[-1] |= {"label": style.percent(group.mean), "bold": True}
    names = [group.name + ("" if group.feature_sharing else "\n(no sharing)") for group in groups]
    title = "Several seeds, and the ceilings of the data set" if limits else "Several seeds"
    chart = Chart(
        Axis("mIoU on test, %", 0, 100),
        rows_axis(title, names, 0.45 * len(limits)),
        marks(rows, size_pt=7.2),
        lines=tuple(
            Line(100 * limit, f"{name} {style.percent(limit)}", upright=True, colour=palette.INK)
            for name, limit in sorted(limits.items(), key=lambda pair: -pair[1])
        ),
        join_colour=palette.PALE,
        join_width=7,
    )
    return static.figure([chart], (9, 1.5 + 0.42 * max(3, len(groups))))


def object_sizes(frame: pd.DataFrame) -> Figure:
    """A column a class, a line a run, by size: above the share of the pixels of true objects that is
    found, below the share of the pixels of predicted objects that is right.

    Args:
        frame: rows of the table `objects`.
    """
    looks = frame.assign(
        x=frame.group,
        join=frame.run,
        colour=frame.network.map(palette.colours(frame.network)),
        marker=frame.strategy.map(palette.markers(frame.strategy)),
    )
    limits = frame[~frame.diameter_px.str.startswith("<")]
    starts = limits.diameter_px.str.extract(r"(\d+)")[0]
    ticks = {float(group) - 0.5: at for group, at in zip(limits.group, starts, strict=True)}
    named = keys(marks(looks), "run", "colour", "marker")
    classes = frame["class"].unique()
    panels = [
        Chart(
            Axis(x, -0.5, frame.group.max() + 0.5, ticks=ticks),
            Axis(f"{style.spaced(name)}: {share}, %", -3, 103),
            marks(
                own.assign(y=100 * own[f"{share}_share"]).dropna(subset="y"),
                size_pt=5.0,
            ),
            named,
        )
        for share, x in (("found", ""), ("right", "diameter, px"))
        for name, own in looks.groupby("class", sort=False)
    ]
    return static.figure(panels, (max(2.4 * len(classes), 6), 5.2), len(classes), _BELOW)


def class_intervals(
    names: Sequence[str], intervals: Mapping[str, tuple[float, float, float]]
) -> interactive.Figure:
    """A point a class with its interval.

    Args:
        names: of classes, the first one on top.
        intervals: IoU, its lower and its upper end, 0..1; a class without an IoU has none.
    """
    known = [name for name in names if name in intervals][::-1]
    texts = [name.replace("_", " ") for name in known]
    points = 100 * pd.DataFrame([intervals[name] for name in known], columns=["x", "low", "high"])
    points = marks(
        points,
        y=points.index,
        colour=palette.BLUE,
        hover=[f"{text}: {x:.1f} %" for text, x in zip(texts, points.x, strict=True)],
    )
    axes = Axis("IoU on test, %", 0, 100), rows_axis("", texts)
    return interactive.scatter(Chart(*axes, points, interval="x"))
