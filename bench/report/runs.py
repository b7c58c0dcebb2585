"""Accuracy and cost: one line a run, its IoU by class, its confusion matrix, its latency, and what
one setting changes."""

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import pandas as pd

from bench.report import bootstrap, evaluations, figures
from bench.report.evaluations import Group
from bench.report.findings import limits, seed_sentences
from bench.report.load_records import BASELINE, BENCHMARK, Entry, median
from bench.report.section import Section, section, table
from bench.report.style import NOTHING, points, spaced

NVML_PX = 2000
"""Side of an image from which the process total is the memory that is shown."""


def runs(entries: Sequence[Entry]) -> pd.DataFrame:
    """One line a run in the suite's order, whatever became of it: shares 0..1, bytes, seconds."""
    frame = table("runs", ({**_cost(one), **_about(one), **_accuracy(one)} for one in entries))
    frame["share_of_best"] = evaluations.shares_of_best(frame)
    least = {name: evaluations.baseline_miou(own) for name, own in frame.groupby("dataset")}
    known = {e.name: e for e in entries if e.evaluation and e.network != BASELINE}
    out = {n: bootstrap.excluded(bootstrap.of_entry(e), least[e.dataset]) for n, e in known.items()}
    frame["excluded"] = frame.run.map({n: why for n, why in out.items() if why}).astype(object)
    return frame


def runs_section(frame: pd.DataFrame, meter: str) -> Section:
    """The table of all runs, best first, with bars behind accuracy and the memory of the axis.

    Args:
        frame: `runs`.
        meter: the column of the memory axis.
    """
    out = frame.excluded.notna()
    colours = figures.palette.colours(frame.network)
    tops = {n: frame[n][~out].max() for n in ("miou", meter) if frame[n][~out].notna().any()}

    def look(name: str, row: Any) -> dict[str, Any]:
        if name == "status":
            return {"kind": f"left status {row[name]}"}
        if name == "run":
            return {"mark": colours[row.network]}
        known = name in tops and pd.notna(row[name])
        best = {"kind": "number best"} if name == "miou" and row[name] == tops.get(name) else {}
        bar = {"bar": min(1.0, float(row[name]) / float(tops[name]))} if known else {}
        return {**best, **bar}

    found = section("runs", frame, look=look)
    swap = {meter: "allocated_bytes", "allocated_bytes": meter}  # the axis's is shown first
    return replace(
        found, columns={k: found.columns[k] for k in (swap.get(n, n) for n in found.columns)}
    )


def classes_section(entries: Sequence[Entry]) -> Section:
    """IoU by class on test, 0..1, one line an evaluated run; a class that a data set does not have
    or count is empty."""
    rows, means = [], ["miou", "miou_without_rare"]
    for entry in entries:
        if entry.evaluation:
            own = evaluations.accuracies(entry, "test")
            about = {"dataset": entry.dataset, "run": entry.name, **{n: own[n] for n in means}}
            rows.append({**about, **evaluations.class_ious(entry)})
    frame = pd.DataFrame(rows) if rows else pd.DataFrame(columns=["dataset", "run", *means])
    names = list(frame.columns[4:])
    rare = {name for one in entries for name in one.evaluation.get("rare", ())}
    return section(
        "classes",
        frame,
        {"run": None, "miou": None, "miou_without_rare": ["without rare", "percent"]}
        | {name: [spaced(name) + " (rare)" * (name in rare), "percent"] for name in names},
        heat=names,
        grid=True,
        look=lambda name, row: {"kind": "number mean"} if name in means else {},
    )


def details_section(entries: Sequence[Entry]) -> Section:
    """One line a run and class: average precision and boundary IoU on test, shares 0..1."""
    return section("details", _by_class(entries, evaluations.class_details))


def objects_section(entries: Sequence[Entry], frame: pd.DataFrame) -> Section:
    """One line a run, class and size of object on test, shares 0..1. Drawn are the best run of each
    strategy of other networks, and GLNet's best.

    Args:
        frame: `runs` of the same entries.
    """
    rows = table("objects", _by_class(entries, evaluations.object_details))
    known = frame[(frame.network != BASELINE) & frame.excluded.isna()]
    kinds = known.assign(kind=known.strategy.where(known.network != "glnet", "glnet"))
    best = evaluations.by_accuracy(kinds).drop_duplicates(["dataset", "kind"])
    # A line needs objects of two sizes, and the background is no object.
    sizes = rows.groupby("class").group.transform("nunique")
    shown = rows[(rows["class"] != "background") & (sizes > 1) & rows.run.isin(best.run)]
    draw = partial(figures.charts.object_sizes, shown) if len(shown) else None
    return section("objects", rows, draw=draw)


def _by_class(
    entries: Sequence[Entry], found: Callable[[Entry], list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    return [{**_about(entry), **row} for entry in entries for row in found(entry)]


def confusion_section(entries: Sequence[Entry]) -> Section:
    """One line a run, true class and predicted class: the share of the true class's pixels, 0..1,
    over all scenes of test and all seeds; a class without pixels has no line."""
    rows = [
        (entry.name, truth, predicted, share)
        for entry in entries
        if entry.evaluation
        for truth, shares in evaluations.confusion(entry, "test").dropna().iterrows()
        for predicted, share in shares.items()
    ]
    return section("confusion", rows)


def latency_section(entries: Sequence[Entry]) -> Section:
    """One line a run whose latency was measured, fastest first: median and range of its
    repetitions, the network's share, and what that comes to a pixel and an operation."""
    timed = (one for one in entries if one.measurement.get("latency_s"))
    frame = table("latency", ({**_cost(one), **_about(one)} for one in timed))
    by = ["dataset", "latency_s"]
    return section("latency", frame.sort_values(by, kind="stable", ignore_index=True))


def ablation_section(entries: Sequence[Entry], frame: pd.DataFrame, meter: str) -> Section:
    """One line a run of each network that has several evaluated ones on a data set, best first.

    Args:
        frame: `runs` of the same entries.
        meter: its column that memory is taken from.
    """
    known = frame[(frame.network != BASELINE) & frame.miou.notna()]
    settings = {one.name: settings_of(one) for one in entries}
    agreement = {one.name: evaluations.agreement(one) for one in entries}
    rows = []
    for _, group in known.groupby(["dataset", "network"], sort=False):
        if len(group) > 1:
            said = differences([settings[run] for run in group.run])
            own = evaluations.by_accuracy(group.assign(settings=said, memory_bytes=group[meter]))
            memory = own.memory_bytes.astype(float)
            rows += own.assign(
                difference_points=100 * (own.miou - own.miou.iloc[0]),
                memory_ratio=memory / memory.iloc[0],
                agreement=own.run.map(agreement),
            ).to_dict("records")
    return section("ablation", rows)


def differences(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each of several settings, in words, the values of those keys in which they differ."""
    names = list(dict.fromkeys(name for one in settings for name in one))
    differing = [n for n in names if any(one.get(n) != settings[0].get(n) for one in settings)]
    return [
        ", ".join(f"{name} {_in_words(one[name])}" for name in differing if name in one)
        for one in settings
    ]


def pairs_section(by_dataset: Mapping[str, bootstrap.Pairs]) -> Section:
    """One line a pair of runs of a data set, shares 0..1."""
    rows = []
    for dataset, pairs in by_dataset.items():
        of = {one.run: one.matrices for one in pairs.samples}
        rows += [
            asdict(one)
            | {
                "dataset": dataset,
                "difference": one.value,
                "verdict": f"{one.first} {one.verdict} {one.second}"
                if one.significant
                else one.verdict,
                "scenes": of[one.first].shape[1],
                "seeds": f"{len(of[one.first])} and {len(of[one.second])}",
            }
            for one in pairs.found.values()
        ]
    samples = [one for pairs in by_dataset.values() for one in pairs.samples]
    return section("pairs", rows, fill={"limits": limits(samples)})


def matrix_section(pairs: bootstrap.Pairs, frame: pd.DataFrame) -> Section:
    """`pairs_section` of one data set to look at: row minus column, of runs that are ranked and the
    baseline.

    Args:
        frame: `runs` of it.
    """
    out = set(frame.run[frame.excluded.notna()])
    samples = [one for one in pairs.samples if one.run not in out]
    names = [one.run for one in sorted(samples, key=bootstrap.miou, reverse=True)]
    found = {(a, b): pairs.between(a, b) for a in names for b in names if a != b}
    rows = [
        {"run": a, **{b: one.value for b in names if a != b and (one := found[a, b])}}
        for a in names
    ]

    def look(name: str, row: Any) -> dict[str, Any]:
        one = found.get((row.run, name))
        if one is None:
            return {}
        said = f"{one.first} minus {one.second}: 95 % CI {points(one.low)} to {points(one.high)}"
        return {"meaning": said, "kind": "number best" if one.significant else "number"}

    columns = {"run": None, **{name: [name, "points"] for name in names}}
    limits_of = {"limits": limits(pairs.samples)}
    shown = pd.DataFrame(rows, columns=["run", *names])
    return section("pairs", shown, columns, fill=limits_of, look=look, grid=True)


def seeds_section(dataset: str, found: Sequence[Group], ceilings: Mapping[str, float]) -> Section:
    """One line a group of seeds, shares 0..1.

    Args:
        ceilings: mIoU 0..1 that cannot be passed, by what limits it.
    """
    sharing = [
        NOTHING if g.strategy in evaluations.ONE_VIEW else ("no", "yes")[g.feature_sharing]
        for g in found
    ]
    rows = [
        (g.name, g.strategy, shares, len(g.mious), g.mean, *g.interval, min(g.mious), max(g.mious))
        for g, shares in zip(found, sharing, strict=True)
    ]
    return section(
        "seeds",
        rows,
        draw=partial(figures.charts.seeds, found, ceilings) if found else None,
        fill={"dataset": dataset, "limits": ceilings},
        findings=seed_sentences(found, ceilings),
    )


def ceilings(entries: Iterable[Entry]) -> dict[str, float]:
    """What the data set of these runs states as limits: mIoU 0..1 by what limits it."""
    return next((dict(e.evaluation.get("ceilings", {})) for e in entries if e.evaluation), {})


def settings_of(entry: Entry) -> dict[str, Any]:
    """What makes a run what it is, by one flat name each: strategy, specification, start, seed."""
    return {
        "strategy": entry.run.strategy,
        "precision": entry.run.precision,
        "layout": entry.run.layout,
        "folded": entry.run.folded,
        "graphs": entry.run.graphs,
        **entry.model.spec,
        **entry.run.overrides,
        "start": entry.model.start,
        "seed": entry.model.seed,
    }


def axis_meter(frame: pd.DataFrame) -> str:
    """The column of the memory axis: process total (NVML) if every measured run has it and images
    have a side of `NVML_PX`, else allocated tensors. For smaller images the CUDA context is most of
    the process, which would put all runs into one place."""
    measured = frame[frame.allocated_bytes.notna() | frame.nvml_bytes.notna()]
    complete = len(measured) > 0 and bool(measured.nvml_bytes.notna().all())
    large = bool((measured[["height_px", "width_px"]] >= NVML_PX).any(axis=None))
    return "nvml_bytes" if complete and large else "allocated_bytes"


def run_metrics(frame: pd.DataFrame) -> Iterator[tuple[str, dict[str, float]]]:
    """(run, what `dvc metrics show` prints of it), in units that people read; tables/runs.csv has
    the rest, and is raw."""
    units = {
        "miou_percent": ("miou", 100.0),
        "allocated_mib": ("allocated_bytes", 2.0**-20),
        "nvml_mib": ("nvml_bytes", 2.0**-20),
        "latency_ms": ("latency_s", 1e3),
    }
    for _, row in frame.iterrows():
        known = {key: float(row[of]) * by for key, (of, by) in units.items() if pd.notna(row[of])}
        yield str(row.run), known


def _about(entry: Entry) -> dict[str, Any]:
    return {
        "benchmark": BENCHMARK,
        "dataset": entry.dataset,
        "run": entry.name,
        "network": entry.network,
        "strategy": entry.run.strategy,
        "encoder": entry.model.spec.get("encoder"),
        "status": entry.status,
        "reason": entry.reason or None,
    }


def _accuracy(entry: Entry) -> dict[str, Any]:
    if not entry.evaluation:
        return {}
    one = bootstrap.interval(bootstrap.of_entry(entry))
    return evaluations.accuracies(entry, "test") | {
        "miou_low": one.low,
        "miou_high": one.high,
        "seeds": 1 + len(entry.evaluation.get("other_seeds", {})),
        "accuracy": evaluations.pixel_accuracy(entry),
        "miou_val": evaluations.accuracies(entry, "val").get("miou"),
    }


def _cost(entry: Entry) -> dict[str, Any]:
    values = entry.measurement
    if not values:  # what the process reported before its end
        values = entry.measured.values if entry.measured else {}
    found = {**values, "meters": entry.meters, "latency_s": None, "network_s": None}
    seconds = values.get("latency_s")
    if not seconds:
        return found
    latency, alone = statistics.median(seconds), median(values.get("network_s"))
    return found | {
        "latency_s": latency,
        "repetitions": len(seconds),
        "fastest_s": min(seconds),
        "slowest_s": max(seconds),
        "latency_spread_s": max(seconds) - min(seconds) if len(seconds) > 1 else None,
        "network_s": alone,
        # Two clocks in two rounds: where next to nothing is outside, their noise can pass it.
        "outside_share": max(0.0, 1 - alone / latency) if alone else None,
        "flops_per_s": values["flops"] / latency if values.get("flops") else None,
    }


def _in_words(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " + ".join(map(str, value))
    return "none" if value is None else str(value)
