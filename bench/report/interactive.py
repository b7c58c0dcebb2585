"""The figure of a data set that readers turn: accuracy against memory, by the meter, split and
definition of mIoU that they choose. Every choice is made here, whole; the page only shows it."""

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bench.report import canvas, gate, pareto, seeds, style, tradeoff
from bench.report.canvas import Figure
from bench.report.gather import FLOOR, Entry
from bench.report.page import Target
from bench.report.paper import MB, published
from bench.report.table import accuracies, accuracies_by_seed

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
PAPER_BYTES = 2**31
"""The line of 2 GiB that the paper draws."""
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


@dataclass(frozen=True)
class _Point:
    run: str
    network: str
    strategy: str
    bytes: float | None
    """None: not measured by this meter."""
    shares: tuple[float, ...]
    """mIoU 0..1, one a seed; none: not evaluated."""
    out_of_memory: bool
    room: float | None

    @property
    def percent(self) -> float | None:
        """Mean over the seeds."""
        return 100 * sum(self.shares) / len(self.shares) if self.shares else None


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


def _point(entry: Entry, row: Any, meter: str, shares: tuple[float, ...]) -> _Point:
    size = row[f"{meter}_bytes"]
    return _Point(
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
    points: Sequence[_Point],
    groups: Sequence[seeds.Group],
    theirs: pd.DataFrame,
    memory: str,
    split: str,
    definition: str,
) -> Figure:
    trained = [p for p in points if p.network != FLOOR]
    known = [p for p in trained if p.bytes is not None and p.shares]
    lost = [p for p in trained if p.bytes is None and p.out_of_memory and p.room is not None]
    floor = next((p.percent for p in points if p.network == FLOOR and p.shares), None)
    front = _front(known, floor)
    heights = [p.percent for p in known if p.percent is not None]
    every = [*heights, *([floor] if floor is not None else []), *(100 * theirs.miou)]
    low, high = (min(every), max(every)) if every else (0.0, 100.0)
    pad = 0.08 * (high - low) or 5.0
    bottom = max(0.0, low - pad)
    widths = [*(p.bytes for p in known if p.bytes is not None), *theirs.bytes]
    rooms = [p.room for p in lost if p.room is not None]
    left, right = tradeoff.memory_range([*widths, *rooms])
    traces = [
        *_published_trace(theirs),
        *_front_trace(front, right),
        *_network_traces(known, {p.run for p in front}),
        *_seed_traces(groups, {p.run: p for p in known}),
        *_lost_trace(lost, bottom + 0.3 * pad),
        *_strategy_keys([p.strategy for p in [*known, *lost]]),
    ]
    ticks = tradeoff.byte_ticks(left, right, logarithmic=True)
    shapes = list(_lines(heights, floor, left, right))
    name = DEFINITIONS[definition].partition(":")[0]
    return {
        "data": traces,
        "layout": canvas.layout(
            {
                "type": "log",
                "range": [math.log10(left), math.log10(right)],
                "tickvals": ticks,
                "ticktext": [tradeoff.short_size(tick) for tick in ticks],
                **canvas.heading(memory),
            },
            {"range": [bottom, min(100.0, high + pad)], **canvas.heading(f"{name} on {split}, %")},
            shapes=shapes,
        ),
        "note": _note(front, known),
    }


def _front(known: Sequence[_Point], floor: float | None) -> list[_Point]:
    frame = pd.DataFrame(
        {"run": p.run, "bytes": p.bytes, "miou": p.percent} for p in known
    ).reindex(columns=["run", "bytes", "miou"])
    by_name = {p.run: p for p in known}
    return [by_name[run] for run in pareto.front(frame, "bytes", floor)]


def _note(front: Sequence[_Point], known: Sequence[_Point]) -> str:
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


def _network_traces(known: Sequence[_Point], front: set[str]) -> Iterator[dict[str, Any]]:
    colours = style.colours(p.network for p in known)
    shapes = canvas.symbols([p.strategy for p in known])
    for network, colour in colours.items():
        own = [p for p in known if p.network == network]
        name = style.network_name(network)
        yield _key(name, colour, "circle") | {"legendgroup": network}
        yield {
            "type": "scatter",
            "mode": "markers+text",
            "name": name,
            "legendgroup": network,
            "showlegend": False,
            "x": [p.bytes for p in own],
            "y": [_rounded(p.percent) for p in own],
            "customdata": [p.run for p in own],
            "text": [f"<b>{html.escape(p.run)}</b>" if p.run in front else "" for p in own],
            "textposition": "top center",
            "textfont": {"size": 11},
            "cliponaxis": False,
            "error_y": _spread([p.shares for p in own], colour),
            "marker": {
                "color": colour,
                "size": 12,
                "symbol": [shapes[p.strategy] for p in own],
                "opacity": [1 if p.run in front else 0.6 for p in own],
                "line": {
                    "color": [style.INK if p.run in front else "#ffffff" for p in own],
                    "width": 1,
                },
            },
        }


def _spread(shares: Sequence[tuple[float, ...]], colour: str) -> dict[str, Any]:
    """Bars from the lowest to the highest seed; none where there is one seed."""
    if all(len(each) < 2 for each in shares):
        return {"visible": False}
    means = [100 * sum(each) / len(each) for each in shares]
    return {
        "type": "data",
        "symmetric": False,
        "array": [_rounded(100 * max(e) - m) for e, m in zip(shares, means, strict=True)],
        "arrayminus": [_rounded(m - 100 * min(e)) for e, m in zip(shares, means, strict=True)],
        "color": colour,
        "thickness": 1.5,
        "width": 5,
    }


def _seed_traces(
    groups: Sequence[seeds.Group], known: Mapping[str, _Point]
) -> Iterator[dict[str, Any]]:
    """The mean of runs that differ in their seed alone, with bars from the lowest to the
    highest."""
    shapes = canvas.symbols([group.strategy for group in groups])
    for group in groups:
        own = [known[run] for run in group.runs if run in known]
        if len(own) < 2:  # a run with several seeds has bars of its own
            continue
        colour = style.colours([group.network])[group.network]
        yield {
            "type": "scatter",
            "mode": "markers",
            "name": f"{group.name}: mean of seeds",
            "showlegend": False,
            "x": [sum(p.bytes or 0.0 for p in own) / len(own)],
            "y": [_rounded(100 * group.mean)],
            "hovertemplate": (
                f"<b>{html.escape(group.name)}</b><br>mean of {len(group.mious)} seeds "
                "%{y:.1f} %<extra></extra>"
            ),
            "error_y": _spread([group.mious], colour),
            "marker": {
                "color": "#ffffff",
                "size": 13,
                "symbol": shapes[group.strategy],
                "line": {"color": colour, "width": 2.5},
            },
        }


def _lost_trace(lost: Sequence[_Point], bottom: float) -> Iterator[dict[str, Any]]:
    """Open markers at all that the device has; without an accuracy at the foot."""
    if not lost:
        return
    colours = style.colours(p.network for p in lost)
    shapes = canvas.symbols([p.strategy for p in lost])
    yield {
        "type": "scatter",
        "mode": "markers",
        "name": "out of memory",
        "x": [p.room for p in lost],
        "y": [_rounded(p.percent if p.shares else bottom) for p in lost],
        "customdata": [p.run for p in lost],
        "marker": {
            "color": [colours[p.network] for p in lost],
            "size": 12,
            "symbol": [f"{shapes[p.strategy]}-open" for p in lost],
            "line": {"width": 2},
        },
    }


def _front_trace(front: Sequence[_Point], right: float) -> Iterator[dict[str, Any]]:
    if front:
        yield {
            "type": "scatter",
            "mode": "lines",
            "name": "Pareto front",
            "hoverinfo": "skip",
            "line": {"color": style.INK, "shape": "hv", "width": 1.2},
            "x": [*(p.bytes for p in front), right],
            "y": [_rounded(p.percent) for p in (*front, front[-1])],
        }


def _published_trace(theirs: pd.DataFrame) -> Iterator[dict[str, Any]]:
    if len(theirs):
        yield {
            "type": "scatter",
            "mode": "markers",
            "name": "published",
            "x": [int(size) for size in theirs.bytes],
            "y": [_rounded(100 * share) for share in theirs.miou],
            "hovertext": list(theirs.hover),
            "hoverinfo": "text",
            "marker": {"color": "#c3c8ce", "size": 9, "symbol": "circle"},
        }


def _strategy_keys(strategies: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Which shape is which strategy, for the legend alone."""
    for name, symbol in canvas.symbols(strategies).items():
        yield _key(name, style.GREY, symbol)


def _key(name: str, colour: str, symbol: str) -> dict[str, Any]:
    """A line of the legend and nothing else."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [None],
        "y": [None],
        "hoverinfo": "skip",
        "marker": {"color": colour, "size": 10, "symbol": symbol},
    }


def _lines(
    heights: Sequence[float], floor: float | None, left: float, right: float
) -> Iterator[dict[str, Any]]:
    across = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "layer": "below"}
    label: dict[str, Any] = {"textposition": "end", "yanchor": "bottom", "padding": 2}
    label["font"] = {"size": 11, "color": style.GREY}
    if heights:
        at = _rounded(gate.SHARE * max(heights))
        line = {"color": style.GREY, "width": 1, "dash": "dot"}
        text = f"{100 * gate.SHARE:.0f} % of the best"
        yield {**across, "y0": at, "y1": at, "line": line, "label": {**label, "text": text}}
    if floor is not None:
        at = _rounded(floor)
        line = {"color": style.GREY, "width": 1, "dash": "dash"}
        text = "floor: class-mean colour"
        yield {**across, "y0": at, "y1": at, "line": line, "label": {**label, "text": text}}
    if left <= PAPER_BYTES <= right:
        yield {
            "type": "line",
            "yref": "paper",
            "x0": PAPER_BYTES,
            "x1": PAPER_BYTES,
            "y0": 0,
            "y1": 1,
            "layer": "below",
            "line": {"color": style.ERROR, "width": 1.2, "dash": "dash"},
            "label": {
                "text": "2 GiB, the paper’s line",
                "textposition": "end",
                "textangle": -90,
                "font": {"size": 11, "color": style.ERROR},
            },
        }


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


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
