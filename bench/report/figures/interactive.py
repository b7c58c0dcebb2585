"""The interactive figure of a data set: accuracy against memory, with menus for the meter, the split
and the definition of mIoU. Every combination is computed here; the page only looks it up."""

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from bench.report import style
from bench.report.evaluations import Group, accuracies, accuracies_by_seed, groups, hypervolume
from bench.report.figures import palette
from bench.report.figures.chart import Chart, each, marks
from bench.report.figures.charts import accuracy_chart, published_points
from bench.report.figures.plotly_layout import Figure
from bench.report.figures.plotly_traces import plotly_scatter
from bench.report.load_records import Entry
from bench.report.section import Target

_METERS = {
    "nvml": "process total (nvml)",
    "allocated": "allocated tensors (allocated)",
    "reserved": "reserved by the allocator (reserved)",
    "predicted": "predicted without a device (predicted)",
    "rss": "resident in the host (rss)",
}
_SPLITS = {"test": "test", "val": "val"}
_DEFINITIONS = {
    "miou": "mIoU",
    "miou_official": "official: as GLNet’s code counts",
    "miou_without_rare": "without rare classes",
    "miou_stated": "as stated by the run",
}
_MENUS = (("meter", "memory", _METERS), ("split", "split", _SPLITS),
          ("definition", "accuracy", _DEFINITIONS))  # fmt: skip


@dataclass(frozen=True)
class Option:
    """One line of a menu."""

    value: str
    text: str
    known: bool
    """Whether any run has such a number; if not, it cannot be chosen."""
    chosen: bool


@dataclass(frozen=True)
class Menu:
    """One choice of the reader."""

    name: str
    label: str
    options: tuple[Option, ...]


@dataclass(frozen=True)
class Interactive:
    """A figure and its menus."""

    menus: tuple[Menu, ...]
    content: Mapping[str, Any]
    """`variants`: figure and note by the values of the menus, joined by `|`; `hover` and `pages` by
    run."""
    note: str
    """Of the variant that is shown first."""


def accuracy_memory(
    dataset: str,
    entries: Sequence[Entry],
    runs: pd.DataFrame,
    meter: str,
    where: str,
    target: Target,
) -> Interactive:
    """The figure of one data set for every meter, split and definition of which there are numbers.

    Args:
        entries: runs of the data set.
        runs: `table.runs` of them.
        meter: the column of memory that is shown first.
        where: the device in words, for the axis.
        target: the address of a run's page, as seen from the page that shows the figure.
    """
    variants: dict[str, Figure] = {}
    runs = runs.set_index("run", drop=False).loc[[entry.name for entry in entries]]
    theirs = published_points(dataset)
    for split in _SPLITS:
        by_run = {entry.name: accuracies_by_seed(entry, split) for entry in entries}
        for definition, text in _DEFINITIONS.items():
            shares = {
                run: [
                    one[definition]
                    for one in found
                    if not math.isnan(one.get(definition, math.nan))
                ]
                for run, found in by_run.items()
            }
            if not any(shares.values()):
                continue
            for name, meter_text in _METERS.items():
                own = _rows(runs, runs[f"{name}_bytes"], shares)
                if own.bytes.isna().all():
                    continue
                title = f"peak memory, {meter_text}"
                chart = accuracy_chart(
                    own,
                    title if name == "predicted" else f"{title}<br>{where}",
                    f"{text.partition(':')[0]} on {split}, %",
                    theirs if split == "test" else None,
                )
                shown = _with_seeds(chart, groups(entries, shares))
                variants[f"{name}|{split}|{definition}"] = {
                    **plotly_scatter(shown),
                    "note": _note(chart),
                }
    menus = tuple(_menu(place, variants, meter.removesuffix("_bytes")) for place in range(3))
    first = "|".join(o.value for menu in menus for o in menu.options if o.chosen)
    return Interactive(
        menus=menus,
        content={
            "variants": variants,
            "hover": {entry.name: _hover(entry, runs.loc[entry.name]) for entry in entries},
            "pages": {entry.name: target(entry.name) for entry in entries},
        },
        note=str(variants[first]["note"]) if first in variants else "",
    )


def _rows(
    runs: pd.DataFrame, sizes: pd.Series, shares: Mapping[str, Sequence[float]]
) -> pd.DataFrame:
    """Rows for `accuracy_chart`: the mean over seeds, from the lowest to the highest seed."""
    each = runs.run.map(shares)
    return runs.assign(
        bytes=sizes,
        miou=[sum(one) / len(one) if one else math.nan for one in each],
        low=[100 * min(one) if len(one) > 1 else math.nan for one in each],
        high=[100 * max(one) if len(one) > 1 else math.nan for one in each],
    )


def _with_seeds(chart: Chart, groups: Sequence[Group]) -> Chart:
    """Add the mean of runs that differ in their seed alone; a run with several seeds is a point
    already."""
    means = []
    for group in groups:
        own = chart.points[chart.points.run.isin(group.runs) & (chart.points.fill != "hollow")]
        if len(own) < 2:
            continue
        means.append(
            {
                **own.iloc[0],
                "x": own.x.mean(),
                "y": 100 * group.mean,
                "low": 100 * min(group.mious),
                "high": 100 * max(group.mious),
                "fill": "hollow",
                "label": "",
                "run": "",
                "trace": f"{group.name}: mean of seeds",
                "hover": f"<b>{html.escape(group.name)}</b><br>mean of {len(group.mious)} seeds "
                f"{style.percent(group.mean)} %",
            }
        )
    other = chart.points[chart.points.trace.isin(("published", "out of memory"))]
    other = other.drop_duplicates("trace").assign(colour=palette.GREY, marker="o", bold=False)
    keys = marks(other[["trace", "colour", "marker", "fill"]].rename(columns={"trace": "label"}))
    return replace(
        chart,
        points=pd.concat([chart.points, marks(means)]) if means else chart.points,
        keys=pd.concat([chart.keys, keys]),
    )


def _menu(place: int, variants: Mapping[str, Any], meter: str) -> Menu:
    name, label, texts = _MENUS[place]
    known = {key.split("|")[place] for key in variants}
    chosen = next((value for value in (meter, *texts) if value in known), None)
    return Menu(
        name,
        label,
        tuple(
            Option(value, text + ("" if value in known else ": none"), value in known,
                   value == chosen)
            for value, text in texts.items()
        ),
    )  # fmt: skip


def _note(chart: Chart) -> str:
    """The front and its hypervolume in a sentence."""
    front = chart.points[chart.points.bold.astype(bool)].sort_values("x", kind="stable")
    if front.empty:
        return "No run is on a Pareto front: none is both measured and above the baseline."
    most = chart.points.x[chart.points.fill.isin(("strong", "faded"))].max()
    volume = hypervolume(list(zip(front.x, front.y / 100, strict=True)), most)
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
            for name, value in accuracies(entry, split).items()
        ]
        if said:
            yield f"{split}, %: {', '.join(said)}"
    meters = entry.measurement.get("meters", {})
    for name, meter in meters.items():
        yield f"{name}: {style.size(meter['bytes'])}"
    if "predicted" in meters:
        predicted = meters["predicted"]
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
    record = entry.evaluated or entry.measured
    if record:
        facts = record.provenance
        seed = f", seed {facts['seed']}" if "seed" in facts else ""
        yield f"commit {str(facts.get('commit', ''))[:10]}{seed}"
