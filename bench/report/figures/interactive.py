"""The figure of a data set that readers turn: accuracy against memory, by the meter, split and
definition of mIoU that they choose. Every choice is made here, whole; the page only shows it."""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bench.report import pareto, seeds, style
from bench.report.evaluations import accuracies, accuracies_by_seed
from bench.report.figures import plotly_layout, plotly_traces, scatter
from bench.report.figures.plotly_layout import Figure
from bench.report.figures.plotly_traces import Point
from bench.report.load_records import BASELINE, MB, Entry, published
from bench.report.site import Target

METERS = {
    "nvml": "seen by the card (nvml)",
    "allocated": "tensors alive (allocated)",
    "reserved": "held by the allocator (reserved)",
    "predicted": "worked out without a device (predicted)",
    "rss": "resident in the host (rss)",
}
SPLITS = {"test": "test", "val": "val"}
DEFINITIONS = {
    "miou": "mIoU",
    "miou_official": "official: as GLNet’s code counts",
    "miou_without_rare": "without rare classes",
    "miou_stated": "as stated by the run",
}
_CHOICES = (("meter", "memory", METERS), ("split", "split", SPLITS),
            ("definition", "accuracy", DEFINITIONS))  # fmt: skip


@dataclass(frozen=True)
class Option:
    """One line of a menu."""

    value: str
    text: str
    known: bool
    """Whether any run has such a number; else it cannot be chosen."""
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
    alone = runs.set_index("run")
    theirs = _published(dataset)
    for split in SPLITS:
        by_run = {entry.name: accuracies_by_seed(entry, split) for entry in entries}
        for definition in DEFINITIONS:
            shares = {
                run: tuple(one[definition] for one in found if definition in one)
                for run, found in by_run.items()
            }
            if not any(shares.values()):
                continue
            for name in METERS:
                points = [_point(e, alone.loc[e.name], name, shares[e.name]) for e in entries]
                if all(point.bytes is None for point in points):
                    continue
                said = f"peak memory, {METERS[name]}"
                said += f"<br>{where}" if name != "predicted" else ""
                behind = theirs if split == "test" else theirs.iloc[:0]
                variants[f"{name}|{split}|{definition}"] = _variant(
                    points, _groups(entries, shares), behind, said, split, definition
                )
    first = meter.removesuffix("_bytes")
    menus = tuple(_menu(name, label, texts, variants, first) for name, label, texts in _CHOICES)
    shown = "|".join(o.value for menu in menus for o in menu.options if o.chosen)
    return Interactive(
        menus=menus,
        content={
            "variants": variants,
            "hover": {entry.name: _hover(entry, alone.loc[entry.name]) for entry in entries},
            "pages": {entry.name: target(entry.name) for entry in entries},
        },
        note=str(variants[shown]["note"]) if shown in variants else "",
    )


def _menu(
    name: str, label: str, texts: Mapping[str, str], variants: Mapping[str, Any], meter: str
) -> Menu:
    place = [key for key, _, _ in _CHOICES].index(name)
    known = {key.split("|")[place] for key in variants}
    wanted = [meter, *texts] if name == "meter" else list(texts)
    chosen = next((value for value in wanted if value in known), None)
    return Menu(
        name,
        label,
        tuple(
            Option(value, text + ("" if value in known else ": none"), value in known,
                   value == chosen)
            for value, text in texts.items()
        ),
    )  # fmt: skip


def _point(entry: Entry, row: Any, meter: str, shares: tuple[float, ...]) -> Point:
    size = row[f"{meter}_bytes"]
    return Point(
        run=entry.name,
        network=entry.network,
        strategy=entry.run.strategy,
        bytes=None if pd.isna(size) else float(size),
        shares=tuple(share for share in shares if not math.isnan(share)),
        out_of_memory=entry.status == "oom",
        room=None if pd.isna(row.room_bytes) else float(row.room_bytes),
    )


def _groups(entries: Sequence[Entry], shares: Mapping[str, tuple[float, ...]]) -> list[seeds.Group]:
    """Runs that stand in the suite once a seed; a line of several seeds is a point already."""
    return [one for one in seeds.groups(entries, shares) if len(one.runs) > 1]


def _variant(
    points: Sequence[Point],
    groups: Sequence[seeds.Group],
    theirs: pd.DataFrame,
    memory: str,
    split: str,
    definition: str,
) -> Figure:
    trained = [p for p in points if p.network != BASELINE]
    known = [p for p in trained if p.bytes is not None and p.shares]
    lost = [p for p in trained if p.bytes is None and p.out_of_memory and p.room is not None]
    floor = next((p.percent for p in points if p.network == BASELINE and p.shares), None)
    front = _front(known, floor)
    heights = [p.percent for p in known if p.percent is not None]
    every = [*heights, *([floor] if floor is not None else []), *(100 * theirs.miou)]
    low, high = (min(every), max(every)) if every else (0.0, 100.0)
    pad = 0.08 * (high - low) or 5.0
    bottom = max(0.0, low - pad)
    widths = [*(p.bytes for p in known if p.bytes is not None), *theirs.bytes]
    rooms = [p.room for p in lost if p.room is not None]
    left, right = scatter.memory_range([*widths, *rooms])
    drawn = [
        *plotly_traces.of_published(theirs),
        *plotly_traces.of_front(front, right),
        *plotly_traces.of_networks(known, {p.run for p in front}),
        *plotly_traces.of_seeds(groups, {p.run: p for p in known}),
        *plotly_traces.of_lost(lost, bottom + 0.3 * pad),
        *plotly_traces.strategy_keys([p.strategy for p in [*known, *lost]]),
    ]
    ticks = scatter.byte_ticks(left, right, logarithmic=True)
    shapes = list(plotly_traces.lines(heights, floor, left, right))
    name = DEFINITIONS[definition].partition(":")[0]
    return {
        "data": drawn,
        "layout": plotly_layout.layout(
            {
                "type": "log",
                "range": [math.log10(left), math.log10(right)],
                "tickvals": ticks,
                "ticktext": [scatter.short_size(tick) for tick in ticks],
                **plotly_layout.heading(memory),
            },
            {
                "range": [bottom, min(100.0, high + pad)],
                **plotly_layout.heading(f"{name} on {split}, %"),
            },
            shapes=shapes,
        ),
        "note": _note(front, known),
    }


def _front(known: Sequence[Point], floor: float | None) -> list[Point]:
    frame = pd.DataFrame(
        {"run": p.run, "bytes": p.bytes, "miou": p.percent} for p in known
    ).reindex(columns=["run", "bytes", "miou"])
    by_name = {p.run: p for p in known}
    return [by_name[run] for run in pareto.front(frame, "bytes", floor)]


def _note(front: Sequence[Point], known: Sequence[Point]) -> str:
    """The front and its hypervolume in words."""
    if not front:
        return "No run is on a Pareto front: none is both measured and above the floor."
    reference = max(p.bytes or 0.0 for p in known)
    volume = pareto.hypervolume(
        [(p.bytes or 0.0, (p.percent or 0.0) / 100) for p in front], reference
    )
    listed = ", ".join(f"{p.run} ({p.percent:.1f} % at {style.size(p.bytes)})" for p in front)
    return (
        f"Pareto front: {listed}. Hypervolume {volume:.3f}: the share that the front dominates of "
        f"the rectangle up to 100 % and to {style.size(reference)}, the most that a run here takes."
    )


def _published(dataset: str) -> pd.DataFrame:
    """Published rows of a data set that state memory: `bytes`, `miou` 0..1 and `hover`."""
    frame = published().dropna(subset=["memory_mb", "miou_percent"])
    own = frame[frame.dataset.str.lower() == dataset.lower()]
    return pd.DataFrame(
        {
            "bytes": own.memory_mb.astype(int) * MB,
            "miou": own.miou_percent / 100,
            "hover": [
                f"<b>{html.escape(str(row.method))}</b>, {row.inference}: published by "
                f"{html.escape(str(row.paper))} {row.year}<br>{row.miou_percent} % at "
                f"{style.size(int(row.memory_mb) * MB)}, as {_card(row.gpu)} showed"
                for _, row in own.iterrows()
            ],
        }
    )


def _card(name: Any) -> str:
    return "an unnamed card" if pd.isna(name) else f"a {name}"


def _hover(entry: Entry, row: Any) -> str:
    """All that the records know of a run, in plotly's few tags."""
    lines = [f"{style.network_name(entry.network)}, {entry.run.strategy}"]
    if entry.status != "ok":
        lines.append(f"status: {entry.status} ({entry.reason})"[:160])
    for split in SPLITS:
        found = accuracies(entry, split)
        said = [
            f"{DEFINITIONS[name].partition(':')[0]} {style.percent(value)}"
            for name, value in found.items()
        ]
        if said:
            lines.append(f"{split}, %: {', '.join(said)}")
    meters = entry.measurement.get("meters", {})
    for name, meter in meters.items():
        lines.append(f"{name}: {style.size(meter['bytes'])}")
    if "predicted" in meters:
        predicted = meters["predicted"]
        place = predicted.get("module") or "outside of all modules"
        lines.append(f"peak at {predicted.get('at', 'unknown')}, {place}")
    if pd.notna(row.latency_s):
        lines.append(
            f"latency {style.duration(row.latency_s)}, network alone "
            f"{style.duration(row.network_s)}, {row.megapixels_per_s:.2f} megapixels a second"
        )
    if pd.notna(row.flops):
        lines.append(f"{row.flops / 1e9:.1f} GFLOP, {style.count(row.parameters)} parameters")
    if pd.notna(row.height_px):
        lines.append(f"measured on {row.height_px} × {row.width_px} px, {row.device}")
    record = entry.evaluated or entry.measured
    if record:
        facts = record.provenance
        seed = f", seed {facts['seed']}" if "seed" in facts else ""
        lines.append(f"commit {str(facts.get('commit', ''))[:10]}{seed}")
    escaped = "<br>".join(html.escape(line) for line in lines)
    return f"<b>{html.escape(entry.name)}</b><br>{escaped}<br><i>click: its page</i>"
