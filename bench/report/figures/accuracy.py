"""Accuracy against memory: the static figure, and the interactive one with menus for the meter, the
split and the definition of mIoU."""

import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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

LIMIT = Line(PAPER_BYTES, "2 GiB", upright=True, colour=palette.INK)
_SHOWN = dict.fromkeys(("downsample", "whole", "global"), "whole image")
_SHOWN |= dict.fromkeys(("patch", "local", "plain"), "patches")
AXIS = {"allocated_bytes": "allocated tensors", "nvml_bytes": "process total (NVML)"}
_METERS = {
    "nvml": "process total (nvml)",
    "allocated": "allocated tensors (allocated)",
    "reserved": "reserved by the allocator (reserved)",
    "predicted": "predicted without a device (predicted)",
    "rss": "resident in the host (rss)",
}
_SPLITS = ("test", "val")
_DEFINITIONS = {
    "miou": "mIoU",
    "miou_official": "official: as GLNet’s code counts",
    "miou_without_rare": "without rare classes",
    "miou_stated": "as stated by the run",
}
_MENUS: Sequence[tuple[str, str, Mapping[str, str]]] = (
    ("meter", "memory", _METERS),
    ("split", "split", dict(zip(_SPLITS, _SPLITS, strict=True))),
    ("definition", "accuracy", _DEFINITIONS),
)


@dataclass(frozen=True)
class Menu:
    """One choice of the reader."""

    name: str
    label: str
    texts: Mapping[str, str]
    """By value."""
    known: frozenset[str]
    """Values of which there is a figure; others cannot be chosen."""
    chosen: str
    """At first; empty if no value is known."""


@dataclass(frozen=True)
class Interactive:
    """A figure and its menus."""

    menus: tuple[Menu, ...]
    content: Mapping[str, Any]
    """`variants`: figure and note by the values of the menus, joined by `|`; `hover` and `pages` by
    run."""

    @property
    def note(self) -> str:
        """Of the variant that is shown first."""
        first = "|".join(menu.chosen for menu in self.menus)
        return str(self.content["variants"].get(first, {}).get("note", ""))


def accuracy_memory(frame: pd.DataFrame, meter: str, where: str) -> Figure:
    """mIoU against peak memory, one point a run, one panel a data set.

    Args:
        frame: `table.runs`.
        meter: the column of the memory axis.
        where: the device in words, for the axis.
    """
    title = f"peak memory: {AXIS.get(meter, meter)}, {where}"
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


def with_menus(
    dataset: str,
    entries: Sequence[Entry],
    runs: pd.DataFrame,
    meter: str,
    where: str,
    target: Callable[[str], str],
) -> Interactive:
    """The interactive figure of one data set for every meter, split and definition of which there
    are numbers: every combination is computed here, the page only looks it up.

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
    for split in _SPLITS:
        by_run = {
            entry.name: pd.DataFrame(evaluations.accuracies_by_seed(entry, split))
            for entry in entries
        }
        for definition, text in _DEFINITIONS.items():
            shares = {
                run: found[definition].dropna().tolist() if definition in found else []
                for run, found in by_run.items()
            }
            accuracy = _over_seeds(runs.run.map(shares))
            for name, meter_text in _METERS.items():
                own = runs.assign(bytes=runs[f"{name}_bytes"], **accuracy)
                if own.bytes.isna().all() or own.miou.isna().all():
                    continue
                title = f"peak memory, {meter_text}"
                chart = accuracy_chart(
                    own,
                    title if name == "predicted" else f"{title}<br>{where}",
                    f"{text.partition(':')[0]} on {split}, %",
                    theirs if split == "test" else None,
                )
                shown = _with_seeds(chart, evaluations.groups(entries, shares))
                variants[f"{name}|{split}|{definition}"] = {
                    **interactive.scatter(shown),
                    "note": _note(chart),
                }
    content = {
        "variants": variants,
        "hover": {entry.name: _hover(entry, runs.loc[entry.name]) for entry in entries},
        "pages": {entry.name: target(entry.name) for entry in entries},
    }
    menus = []
    for place, (name, label, texts) in enumerate(_MENUS):
        known = frozenset(key.split("|")[place] for key in variants)
        order = (meter.removesuffix("_bytes"), *texts)
        chosen = next((value for value in order if value in known), "")
        menus.append(Menu(name, label, texts, known, chosen))
    return Interactive(tuple(menus), content)


def _over_seeds(shares: pd.Series) -> dict[str, pd.Series]:
    """Columns of `accuracy_chart`: the mean over seeds, and in per cent the lowest and the highest
    of several."""
    known, several = shares[shares.map(len) > 0], shares[shares.map(len) > 1]
    return {
        "miou": known.map(lambda one: sum(one) / len(one)).astype(float),
        "low": 100 * several.map(min).astype(float),
        "high": 100 * several.map(max).astype(float),
    }


def _with_seeds(chart: Chart, groups: Sequence[evaluations.Group]) -> Chart:
    """Add the mean of runs that differ in their seed alone; a run with several seeds is a point
    already."""
    points = [chart.points]
    for group in groups:
        own = chart.points[chart.points.run.isin(group.runs) & (chart.points.fill != "hollow")]
        if len(own) > 1:
            name, mean = html.escape(group.name), style.percent(group.mean)
            points.append(
                own.iloc[:1].assign(
                    x=own.x.mean(),
                    y=100 * group.mean,
                    low=100 * min(group.mious),
                    high=100 * max(group.mious),
                    fill="hollow",
                    label="",
                    run="",
                    trace=f"{group.name}: mean of seeds",
                    hover=f"<b>{name}</b><br>mean of {len(group.mious)} seeds {mean} %",
                )
            )
    other = chart.points[chart.points.trace.isin(("published", "out of memory"))]
    other = keys(other.assign(colour=palette.GREY, marker="o"), "trace", "fill")
    return replace(chart, points=pd.concat(points), keys=pd.concat([chart.keys, other]))


def _note(chart: Chart) -> str:
    """The front and its hypervolume in a sentence."""
    front = chart.points[chart.points.bold.astype(bool)].sort_values("x", kind="stable")
    if front.empty:
        return "No run is on a Pareto front: none is both measured and above the baseline."
    most = chart.points.x[chart.points.fill.isin(("strong", "faded"))].max()
    volume = evaluations.hypervolume(list(zip(front.x, front.y / 100, strict=True)), most)
    listed = ", ".join(f"{p.run} ({p.y:.1f} % at {style.size(p.x)})" for p in each(front))
    return (
        f"Pareto front: {listed}. Hypervolume {volume:.3f}: the share that the front dominates of "
        f"the rectangle up to 100 % and to {style.size(most)}, the highest memory of a run here."
    )


def _hover(entry: Entry, row: Any) -> str:
    """What the records say of a run, in the tags that plotly knows."""
    escaped = "<br>".join(html.escape(line) for line in _facts(entry, row))
    return f"<b>{html.escape(entry.name)}</b><br>{escaped}<br><i>click: its page</i>"


def _facts(entry: Entry, row: Any) -> Iterator[str]:
    yield f"{style.network_name(entry.network)}, {entry.run.strategy}"
    if entry.status != "ok":
        yield f"status: {entry.status} ({entry.reason})"[:160]
    for split in _SPLITS:
        said = [
            f"{_DEFINITIONS[name].partition(':')[0]} {style.percent(value)}"
            for name, value in evaluations.accuracies(entry, split).items()
        ]
        if said:
            yield f"{split}, %: {', '.join(said)}"
    for name, meter in entry.meters.items():
        yield f"{name}: {style.size(meter['bytes'])}"
    if predicted := entry.meters.get("predicted"):
        place = predicted.get("module") or "outside of all modules"
        yield f"peak at {predicted.get('at', 'unknown')}, {place}"
    if pd.notna(row.latency_s):
        yield (
            f"latency {style.duration(row.latency_s)}, network alone "
            f"{style.duration(row.network_s)}, {row.megapixels_per_s:.2f} megapixels a second"
        )
    if pd.notna(row.flops):
        yield f"{row.flops / 1e9:.1f} GFLOP, {style.count(row.parameters)} parameters"
    if pd.notna(row.height_px):
        yield f"measured on {row.height_px} × {row.width_px} px, {row.device}"
    if record := entry.evaluated or entry.measured:
        facts = record.provenance
        seed = f", seed {facts['seed']}" if "seed" in facts else ""
        yield f"commit {(facts.get('commit') or 'unknown')[:10]}{seed}"
