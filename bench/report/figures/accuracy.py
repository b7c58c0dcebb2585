"""Accuracy against memory: the static figure, and the interactive one with menus for the meter, the
split and the definition of mIoU."""

import html
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from bench.report import evaluations, style
from bench.report.figures import interactive, palette, static
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
from bench.report.load_records import BASELINE, Entry
from bench.report.load_records import published as published_rows
from bench.report.section import Plot, descriptions, sentences

BASELINE_TEXT = "baseline (colour)"
LIMIT = Line(PAPER_BYTES, "2 GiB", upright=True, colour=palette.INK)


def accuracy_memory(frame: pd.DataFrame, meter: str, where: str) -> Figure:
    """mIoU against peak memory, one point a run, one panel a data set with an evaluated run.

    Args:
        frame: `evaluations.seeds_as_one`.
        meter: the column of the memory axis.
        where: the device in words, for the axis.
    """
    title = f"peak memory: {meter_name(meter)}, {where}"
    known = frame[frame.groupby("dataset").miou.transform("count") > 0]
    charts = [
        replace(
            accuracy_chart(own.assign(bytes=own[meter]), title, f"mIoU on {name} (test), %"),
            note="up and to the left is better  ↖",
        )
        for name, own in (known if len(known) else frame).groupby("dataset", sort=False)
    ]
    columns = 1 + any(len(chart.keys) > 24 for chart in charts)
    legend = {"loc": "outside right upper", "ncols": columns}
    return static.figure(charts, (7 + 2 * columns, 5.2 * max(1, len(charts))), legend=legend)


def meter_name(column: str) -> str:
    """What people call the meter of a column of memory."""
    return style.FORMS["meter"](column.removesuffix("_bytes"))


def accuracy_chart(
    runs: pd.DataFrame, x_title: str, y_title: str, theirs: pd.DataFrame | None = None
) -> Chart:
    """mIoU against memory: runs, the Pareto front, the quality gate and the baseline.

    A run that ran out of memory is hollow and stands at the device's capacity, at the lower end
    of the axis if it has no mIoU. One that is excluded is pale, without a bar, and named only if
    it is GLNet's.

    Args:
        runs: columns run, network, strategy, status, excluded, available_bytes, bytes, miou,
            miou_low and miou_high 0..1; a row without bytes or miou has no point.
        theirs: `published_points`; drawn behind the runs.
    """
    shares = 100 * runs[["miou", "miou_low", "miou_high"]].astype(float)
    kept = runs.excluded.isna()
    runs = runs.assign(
        x=runs.bytes.astype(float),
        y=shares.miou,
        low=shares.miou_low.where(kept),
        high=shares.miou_high.where(kept),
        label=runs.run,
    )
    trained = runs[runs.network != BASELINE]
    known = trained.dropna(subset=["y", "x"])
    baseline = runs.y[runs.network == BASELINE].dropna().tolist()
    # A baseline far below would push all runs together.
    far = any(one < 2 * known.y.min() - known.y.max() for one in baseline)
    front = evaluations.front(known, "bytes", baseline[0] / 100 if baseline else None)
    lost = trained[trained.bytes.isna() & (trained.status == "oom")]
    behind = marks([] if theirs is None else theirs)
    shown = trained if far else runs
    y = percent_axis(y_title, [*shown.y, *behind.y, *shown.low, *shown.high])
    capacity = lost.available_bytes.astype(float)
    x = memory_axis(x_title, [*known.x, *behind.x, *capacity.dropna()])
    on_front = known.run.isin(front)
    lost = lost.assign(
        x=capacity.fillna(x.high),
        y=lost.y.fillna(y.low + 0.03 * (y.high - y.low)),
        label=lost.run.where(lost.y.notna(), lost.run + " (no mIoU)"),
        bold=False,
        fill="hollow",
        trace="out of memory",
    )
    ranked = known.excluded.isna()
    best = ranked & (known.y == known.groupby("network").y.transform("max"))
    named = on_front | (known.network == "glnet") | best
    known = known.assign(
        label=known.label.where(named, ""),
        bold=on_front,
        fill=on_front.map({True: "strong", False: "full"}).where(ranked, "pale"),
        trace=known.network.map(style.network_name),
    )
    drawn = marks(looks(pd.concat([lost, known])))
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
        *(
            Line(y.low, f"{BASELINE_TEXT}: {at:.1f} %, below") if far else Line(at, BASELINE_TEXT)
            for at in baseline[:1]
        ),
    )
    points = pd.concat([behind, drawn], ignore_index=True)
    rest = {"ring": "published", "hollow": "out of memory", "pale": "excluded"}
    others = points.assign(colour=palette.GREY, marker="o", label=points.fill.map(rest))
    others = keys(others.dropna(subset=["label"]), "label", "colour", "fill")
    return Chart(x, y, points, pd.concat([legend(drawn), others]), lines, front=True)


def looks(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with the colour of their network, its name as papers spell it, the marker of their
    strategy, and what that shows the network."""
    shows = {name: one.get("shows", "both") for name, one in style.LOOKS["strategies"].items()}
    return rows.assign(
        colour=rows.network.map(palette.colours(rows.network)),
        marker=rows.strategy.map(palette.markers(rows.strategy)),
        network=rows.network.map(style.network_name),
        view=rows.strategy.map(shows).fillna("both"),
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
        fill="ring",
        size_pt=6.5,
        layer=1,
        trace="published",
        network="published",
        view=(rows.inference == "global").map({True: "whole image", False: "patches"}),
        hover=[
            f"<b>{html.escape(row.method)}</b>{_lines('published_point', row=row)}"
            for row in each(rows)
        ],
    )


def with_menus(
    id: str,
    dataset: str,
    entries: Sequence[Entry],
    runs: pd.DataFrame,
    meter: str,
    where: str,
    target: Callable[[str], str],
) -> Plot:
    """The interactive figure of one data set for every meter, split and definition of which there
    are numbers: every combination is computed here, the page only looks it up.

    Its content is `variants`, figure and note by the values of the menus, joined by `|`, and `hover`
    and `pages` by run.

    Args:
        entries: runs of the data set.
        runs: `table.runs` of them.
        meter: the column of memory that is shown first.
        where: the device in words, for the axis.
        target: the address of a run's page, as seen from the page that shows the figure.
    """
    variants: dict[str, interactive.Figure] = {}
    runs = runs.set_index("run", drop=False).loc[[entry.name for entry in entries]]
    theirs = published_points(dataset)
    meters, splits, definitions = (menu["texts"] for menu in descriptions()["menus"])
    for split, definition in product(splits, definitions):
        seeds = {one.name: evaluations.accuracies_by_seed(one, split) for one in entries}
        shares = {
            run: [one[definition] for one in found if not math.isnan(one.get(definition, math.nan))]
            for run, found in seeds.items()
        }
        means = {run: statistics.fmean(found) for run, found in shares.items() if found}
        own = runs.assign(miou=runs.run.map(means).astype(float))
        if (split, definition) != ("test", "miou"):  # which the intervals are of
            own = own.assign(miou_low=math.nan, miou_high=math.nan)
        groups = evaluations.groups(entries, shares)
        joined = evaluations.seeds_as_one(own, groups)
        for name, text in meters.items():
            own = joined.assign(bytes=joined[f"{name}_bytes"])
            if own.bytes.isna().all() or own.miou.isna().all():
                continue
            chart = accuracy_chart(
                own,
                f"peak memory, {text}" + (f"<br>{where}" if name != "predicted" else ""),
                f"{definitions[definition].partition(':')[0]} on {split}, %",
                theirs if split == "test" else None,
            )
            shown = interactive.scatter(chart) | {"note": _note(chart)}
            variants[f"{name}|{split}|{definition}"] = shown
    hover = {entry.name: _hover(entry, runs.loc[entry.name]) for entry in entries}
    pages = {entry.name: target(entry.name) for entry in entries}
    for group in evaluations.groups(entries):
        said = _lines("seeds_point", group=group)
        hover[group.name] = f"<b>{html.escape(group.name)}</b><br>{said}"
        pages.setdefault(group.name, target(group.runs[0]))
    content = {"variants": variants, "hover": hover, "pages": pages}
    choices = menus(descriptions()["menus"], variants, meter.removesuffix("_bytes"))
    return Plot(id, f"mIoU against memory on {dataset}", content, choices)


def menus(
    described: Sequence[Mapping[str, Any]], variants: Mapping[str, Any], first: str = ""
) -> list[dict[str, Any]]:
    """Menus of `Plot`: what sections.yaml says of them, and what there are variants of.

    Args:
        variants: figures by the values of all menus, joined by `|`.
        first: a value that is chosen where it is known.
    """
    found = []
    for place, menu in enumerate(described):
        known = {key.split("|")[place] for key in variants}
        chosen = next((value for value in (first, *menu["texts"]) if value in known), "")
        found.append({**menu, "known": known, "chosen": chosen})
    return found


def _note(chart: Chart) -> str:
    """The front and its hypervolume in a sentence."""
    front = chart.best
    most = chart.points.x[chart.points.fill.isin(("strong", "full", "pale"))].max()
    volume = evaluations.hypervolume(list(zip(front.x, front.y / 100, strict=True)), most)
    return " ".join(sentences("front", front=list(each(front)), volume=volume, most=most))


def _hover(entry: Entry, row: Any) -> str:
    """What the records say of a run, in the tags that plotly knows."""
    _, splits, definitions = (menu["texts"] for menu in descriptions()["menus"])
    found = {split: evaluations.accuracies(entry, split) for split in splits}
    lines = _lines("run_point", entry=entry, row=row, splits=found, definitions=definitions)
    return f"<b>{html.escape(entry.name)}</b><br>{lines}<br><i>click: its page</i>"


def _lines(name: str, **values: Any) -> str:
    """Sentences of sections.yaml, each on a line of a hover text."""
    return html.escape("\n".join(sentences(name, **values))).replace("\n", "<br>")
