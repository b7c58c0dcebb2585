"""Accuracy and cost: one line a run, its IoU by class, its confusion matrix, its latency, and what
one setting changes."""

import statistics
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bench import metrics
from bench.report import bootstrap, figures, style
from bench.report.evaluations import accuracies, matrices, matrix, shares_of_best
from bench.report.load_records import BASELINE, Entry
from bench.report.section import Section, section, spaced, table

METERS = ("predicted", "allocated", "rss", "nvml", "reserved")


def runs(entries: Sequence[Entry]) -> pd.DataFrame:
    """One line a run in the suite's order, whatever became of it: shares 0..1, bytes, seconds."""
    frame = table(
        [{**_about(one), **_accuracy(one), **_cost(one)} for one in entries],
        "dataset run network strategy status miou miou_official predicted_bytes allocated_bytes "
        "rss_bytes nvml_bytes latency_s reserved_bytes predicted_host_bytes megapixels_per_s "
        "parameters accuracy miou_low miou_high seeds miou_without_rare miou_val miou_stated "
        "share_of_best latency_spread_s network_s flops room_bytes device height_px width_px "
        "encoder reason",
    )
    frame["share_of_best"] = shares_of_best(frame)
    return frame


def runs_section(frame: pd.DataFrame, meter: str) -> Section:
    """The table of all runs, best first, with bars behind accuracy and the memory of the axis.

    Args:
        frame: `runs`.
        meter: the column of the memory axis.
    """
    colours = figures.palette.colours(frame.network)
    tops = {n: frame[n].max() for n in ("miou", meter) if frame[n].notna().any()}

    def look(name: str, row: Any) -> dict[str, Any]:
        if name == "status":
            return {"kind": f"left status {row[name]}"}
        if name == "run":
            return {"mark": colours[row.network]}
        known = name in tops and pd.notna(row[name])
        best = {"kind": "number best"} if name == "miou" and row[name] == tops.get(name) else {}
        return {**best, "bar": float(row[name]) / float(tops[name])} if known else best

    return section("runs", rows=frame, look=look)


def classes_section(entries: Sequence[Entry]) -> Section:
    """IoU by class on test, 0..1, one line an evaluated run; a class that a data set does not have
    or count is empty."""
    rows: list[dict[str, Any]] = []
    for entry in entries:
        if entry.evaluation:
            values, means = entry.evaluation, accuracies(entry, "test")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # a class that no seed knows
                each = np.nanmean(
                    metrics.iou(matrices(entry, "test"), values["classes"], values["ignored"]), 0
                )
            counted = dict(zip(values["classes"], each, strict=True))
            rows.append(
                {"dataset": entry.dataset, "run": entry.name}
                | {key: means[key] for key in ("miou", "miou_without_rare")}
                | {key: iou for key, iou in counted.items() if key not in values["ignored"]}
            )
    frame = pd.DataFrame(rows)
    frame = frame if rows else table([], "dataset run miou miou_without_rare")
    rare = {name for one in entries for name in one.evaluation.get("rare", ())}
    names = list(frame.columns[4:])
    headings = {name: spaced(name) + (" (rare)" if name in rare else "") for name in names}

    def look(name: str, row: Any) -> dict[str, Any]:
        if name in names and pd.notna(row[name]):
            return {"kind": "number heat", "heat": float(row[name])}
        return {"kind": "number mean"} if name.startswith("miou") else {}

    return section(
        "classes",
        rows=frame,
        show=" ".join(frame.columns[1:]),
        columns={name: (text, style.percent) for name, text in headings.items()}
        | {"miou_without_rare": ("without rare", style.percent)},
        look=look,
    )


def confusion_section(entries: Sequence[Entry]) -> Section:
    """One line a run, true class and predicted class: the share of the true class's pixels, 0..1,
    over all scenes of test and all seeds; a class without pixels has no line."""
    rows = [
        (entry.name, truth, predicted, int(n) / int(counts.sum()))
        for entry in entries
        if entry.evaluation
        for truth, counts in zip(
            entry.evaluation["classes"], matrix(entry, "test")[:-1], strict=True
        )
        for predicted, n in zip(entry.evaluation["classes"], counts, strict=True)
        if counts.sum()
    ]
    frame = pd.DataFrame(rows, columns=["run", "truth", "predicted", "share"])
    return Section("confusion", "Confusion", rows=frame, kinds=("csv",))


def latency_section(entries: Sequence[Entry]) -> Section:
    """One line a run whose latency was measured, fastest first: median and range of its
    repetitions, the network's share, and what that comes to a pixel and an operation."""
    frame = table(
        (_latency(one) for one in entries if one.measurement.get("latency_s")),
        "dataset run strategy height_px width_px repetitions latency_s fastest_s slowest_s "
        "network_s outside_share megapixels_per_s flops flops_per_s",
    ).sort_values(["dataset", "latency_s"], kind="stable", ignore_index=True)
    return section("latency", rows=frame)


def ablation_section(entries: Sequence[Entry], frame: pd.DataFrame, meter: str) -> Section:
    """One line a run of each network that has several evaluated ones on a data set, best first.

    Args:
        frame: `runs` of the same entries.
        meter: its column that memory is taken from.
    """
    known = frame[(frame.network != BASELINE) & frame.miou.notna()].set_index("run", drop=False)
    settings = {one.name: settings_of(one) for one in entries}
    rows: list[dict[str, Any]] = []
    for _, group in known.groupby(["dataset", "network"], sort=False):
        said = dict(zip(group.run, differences([settings[n] for n in group.run]), strict=True))
        own = group.sort_values("miou", ascending=False, kind="stable")
        best = own.iloc[0]
        rows += [
            {
                **row[["dataset", "network", "run", "miou", "latency_s"]],
                "settings": said[row.run],
                "difference_points": 100 * (row.miou - best.miou),
                "memory_bytes": row[meter],
                "memory_ratio": None
                if pd.isna(row[meter]) or pd.isna(best[meter])
                else float(row[meter]) / float(best[meter]),
            }
            for _, row in own.iterrows()
            if len(own) > 1
        ]
    return section(
        "ablation",
        rows=table(
            rows,
            "dataset network run settings miou difference_points memory_bytes memory_ratio "
            "latency_s",
        ),
    )


def pairs_section(by_dataset: Mapping[str, bootstrap.Pairs]) -> Section:
    """One line a pair of runs of a data set, shares 0..1."""
    rows = []
    for dataset, pairs in by_dataset.items():
        of = {one.run: one.matrices for one in pairs.samples}
        rows += [
            {
                "dataset": dataset,
                "first": first,
                "second": second,
                "difference": one.value,
                "low": one.low,
                "high": one.high,
                "verdict": f"{first} {one.verdict} {second}",
                "scenes": of[first].shape[1],
                "seeds": f"{len(of[first])} and {len(of[second])}",
            }
            for (first, second), one in pairs.found.items()
        ]
    samples = [one for pairs in by_dataset.values() for one in pairs.samples]
    return section(
        "pairs",
        rows=table(rows, "dataset first second difference low high verdict scenes seeds"),
        fill={"limits": bootstrap.limits(samples)},
    )


def differences(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each of several settings, in words, the values of those keys in which they differ."""
    names = list(dict.fromkeys(name for one in settings for name in one))
    differing = [n for n in names if any(one.get(n) != settings[0].get(n) for one in settings)]
    return [
        ", ".join(f"{name} {_in_words(one[name])}" for name in differing if name in one)
        for one in settings
    ]


def settings_of(entry: Entry) -> dict[str, Any]:
    """What makes a run what it is, by one flat name each: strategy, specification, start, seed."""
    return {
        "strategy": entry.run.strategy,
        **entry.model.spec,
        **entry.run.overrides,
        "start": entry.model.start,
        "seed": entry.model.seed,
    }


def axis_meter(frame: pd.DataFrame) -> str:
    """The column of the memory axis: process total (NVML) if every measured run has it, else the
    tensors alive."""
    measured = frame[frame.allocated_bytes.notna() | frame.nvml_bytes.notna()]
    complete = len(measured) > 0 and bool(measured.nvml_bytes.notna().all())
    return "nvml_bytes" if complete else "allocated_bytes"


def by_accuracy(frame: pd.DataFrame) -> pd.DataFrame:
    """Best first; runs without an accuracy last, in the suite's order."""
    return frame.sort_values("miou", ascending=False, na_position="last", kind="stable")


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
    return accuracies(entry, "test") | {
        "miou_low": one.low,
        "miou_high": one.high,
        "seeds": 1 + len(entry.evaluation.get("other_seeds", {})),
        "accuracy": metrics.accuracy(matrix(entry, "test")),
        "miou_val": accuracies(entry, "val").get("miou"),
    }


def _cost(entry: Entry) -> dict[str, Any]:
    values = entry.measurement
    if not values:  # what the process reported before its end
        values = entry.measured.values if entry.measured else {}
    named = ("parameters", "flops", "device", "room_bytes", "height_px", "width_px")
    seconds, alone = values.get("latency_s"), values.get("network_s")
    latency = statistics.median(seconds) if seconds else None
    pixels = values.get("height_px", 0) * values.get("width_px", 0)
    return {
        **{f"{name}_bytes": entry.meters[name]["bytes"] for name in METERS if name in entry.meters},
        "predicted_host_bytes": entry.meters.get("predicted", {}).get("host_bytes"),
        "latency_s": latency,
        "latency_spread_s": max(seconds) - min(seconds) if seconds and len(seconds) > 1 else None,
        "network_s": statistics.median(alone) if alone else None,
        "megapixels_per_s": pixels / 1e6 / latency if latency else None,
        **{name: values.get(name) for name in named},
    }


def _latency(entry: Entry) -> dict[str, Any]:
    values, cost = entry.measurement, _cost(entry)
    latency, alone, flops = cost["latency_s"], cost["network_s"], cost["flops"]
    return _about(entry) | cost | {
        "repetitions": len(values["latency_s"]),
        "fastest_s": min(values["latency_s"]),
        "slowest_s": max(values["latency_s"]),
        # Two clocks in two rounds: where next to nothing is outside, their noise can pass it.
        "outside_share": max(0.0, 1 - alone / latency) if alone else None,
        "flops_per_s": flops / latency if flops else None,
    }  # fmt: skip


def _in_words(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " + ".join(map(str, value))
    return "none" if value is None else str(value)
