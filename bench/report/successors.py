"""Every ultra-high-resolution method under one protocol: what each comes to here, what is published
of it, which published ranking survives, and what the released codes do otherwise than is meant.

Tables of raw values and sentences; how they look is the templates' matter."""

import statistics
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd

from bench.report import bootstrap, style
from bench.report.bootstrap import Difference, Interval, Sample
from bench.report.load_records import BASELINE, MB, Entry, published
from bench.report.successors_memory import KNOWN, WITHIN
from bench.report.table import Columns

UNSPECIFIED = Path(__file__).resolve().parent.parent / "unspecified.csv"


def is_uhr(entry: Entry) -> bool:
    """Whether a run is of a method for ultra-high resolution, not of a plain rival."""
    return entry.model.method != "baselines/generic"


def done(entry: Entry) -> str:
    """`as released`, `as meant`, or empty where a method does not tell them apart."""
    official = {**entry.model.spec, **entry.run.overrides}.get("official", False)
    if official is True:
        return "as released"
    if official:
        return "in part as released"
    return (
        "as meant"
        if entry.model.method in ("glnet", "baselines/isdnet", "baselines/fctl", "baselines/magnet")
        else ""
    )


RUN_COLUMNS = (
    "dataset",
    "run",
    "method",
    "strategy",
    "done",
    "miou",
    "low",
    "high",
    "allocated_bytes",
    "nvml_bytes",
    "rss_bytes",
    "predicted_bytes",
    "latency_s",
    "fps",
    "forward_s",
    "forward_fps",
    "published_miou",
    "published_bytes",
    "published_fps",
)
RUNS: Columns = {
    "run": ("run", str),
    "method": ("method", style.network_name),
    "strategy": ("strategy", str),
    "done": ("done", str),
    "miou": ("mIoU %", style.percent),
    "low": ("from", style.percent),
    "high": ("to", style.percent),
    "allocated_bytes": ("allocated", style.size),
    "nvml_bytes": ("nvml", style.size),
    "rss_bytes": ("rss", style.size),
    "predicted_bytes": ("predicted", style.size),
    "latency_s": ("latency", style.duration),
    "fps": ("FPS", lambda v: rate(v)),
    "forward_s": ("forward alone at .8", style.duration),
    "forward_fps": ("FPS of that", lambda v: rate(v)),
    "published_miou": ("published mIoU %", style.percent),
    "published_bytes": ("published memory", style.size),
    "published_fps": ("published FPS", lambda v: rate(v)),
}


def rate(value: Any) -> str:
    """Images a second with three digits."""
    if pd.isna(value):
        return style.NOTHING
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def runs(entries: Sequence[Entry]) -> pd.DataFrame:
    """One line a run of such a method, best first: mIoU on test with its interval, memory by every
    meter, latency by our protocol and by theirs, and what is published of it on DeepGlobe."""
    numbers = published()
    known = {f"{row.method} / {row.inference}": row for _, row in numbers.iterrows()}
    lines = []
    for entry in filter(is_uhr, entries):
        meters = entry.measurement.get("meters", {})
        seconds = entry.measurement.get("latency_s")
        forward = entry.measurement.get("forward_s")
        found = interval(entry)
        line: dict[str, Any] = {
            "dataset": entry.model.dataset,
            "run": entry.name,
            "method": entry.network,
            "strategy": entry.run.strategy,
            "done": done(entry),
            **{f"{name}_bytes": meter["bytes"] for name, meter in meters.items()},
        }
        if found:
            line |= {"miou": found.value, "low": found.low, "high": found.high}
        for name, times in (("", seconds), ("forward_", forward)):
            if times:
                line[f"{name}s" if name else "latency_s"] = statistics.median(times)
                line[f"{name}fps"] = 1 / statistics.median(times)
        row = known.get(KNOWN.get((entry.model.method, entry.run.strategy), ""))
        if row is not None:
            line["published_miou"] = row.miou_percent / 100
            line["published_fps"] = row.fps
            if pd.notna(row.memory_mb):
                line["published_bytes"] = int(row.memory_mb) * MB
        lines.append(line)
    frame = pd.DataFrame(lines, columns=list(RUN_COLUMNS))
    integers = [name for name in RUN_COLUMNS if name.endswith("_bytes")]
    return frame.astype(dict.fromkeys(integers, "Int64")).sort_values(
        ["dataset", "miou"], ascending=[True, False], kind="stable", ignore_index=True
    )


def interval(entry: Entry) -> Interval | None:
    """mIoU on test and how far it would move; None where a run is not evaluated."""
    return bootstrap.interval(sample(entry)) if entry.evaluation else None


def sample(entry: Entry) -> Sample:
    """The run's test scenes."""
    return bootstrap.sample(entry.name, entry.run.model, entry.evaluation)


def limits(entries: Sequence[Entry]) -> str:
    """What the intervals mean, and what they cannot say."""
    return bootstrap.limits([sample(e) for e in entries if is_uhr(e) and e.evaluation])


RANKING_COLUMNS = (
    "dataset",
    "better",
    "worse",
    "published_points",
    "points",
    "low_points",
    "high_points",
    "verdict",
)
RANKING: Columns = {
    "better": ("published as better", str),
    "worse": ("than", str),
    "published_points": ("by, points", lambda v: f"{v:+.1f}"),
    "points": ("here", lambda v: f"{v:+.1f}"),
    "low_points": ("from", lambda v: f"{v:+.1f}"),
    "high_points": ("to", lambda v: f"{v:+.1f}"),
    "verdict": ("the published ranking", str),
}
SURVIVES, TURNED, UNTOLD = "survives", "is turned round", "cannot be told"
UNLEARNT = "is not asked: one has not learnt"
"""A run that is not above nearest class-mean colour, or hardly above one answer everywhere, says
nothing of its method."""
HARDLY = 0.01
"""Of mIoU."""


def flagships(entries: Sequence[Entry]) -> dict[tuple[str, str], Entry]:
    """(data set, published row) -> the run that stands for it: the first one that does nothing as
    released and was not meant otherwise."""
    found: dict[tuple[str, str], Entry] = {}
    for entry in entries:
        key = KNOWN.get((entry.model.method, entry.run.strategy))
        if key and entry.evaluation and "released" not in done(entry):
            found.setdefault((entry.model.dataset, key), entry)
    return found


def ranking(entries: Sequence[Entry]) -> pd.DataFrame:
    """Every pair of methods that papers rank on DeepGlobe, and what is left of it here: points of
    mIoU with the paired interval of their difference."""
    points = published_points()
    floors = {
        entry.model.dataset: bootstrap.miou(sample(entry))
        for entry in entries
        if entry.network == BASELINE and entry.evaluation
    }
    lines = []
    for (first, one), (second, other) in combinations(flagships(entries).items(), 2):
        if first[0] != second[0] or points[first[1]] == points[second[1]]:
            continue
        if points[first[1]] < points[second[1]]:
            (first, one), (second, other) = (second, other), (first, one)
        samples = sample(one), sample(other)
        if not bootstrap.comparable(*samples):
            continue
        found = bootstrap.difference(*samples)
        floor = max(floors.get(first[0], 0.0), bootstrap.one_answer(samples[0]) + HARDLY)
        learnt = min(map(bootstrap.miou, samples)) > floor
        lines.append(
            {
                "dataset": first[0],
                "better": first[1].partition(" / ")[0],
                "worse": second[1].partition(" / ")[0],
                "published_points": points[first[1]] - points[second[1]],
                "points": 100 * found.value,
                "low_points": 100 * found.low,
                "high_points": 100 * found.high,
                "verdict": survival(found) if learnt else UNLEARNT,
            }
        )
    return pd.DataFrame(lines, columns=list(RANKING_COLUMNS))


def published_points() -> dict[str, float]:
    """`METHOD / inference` -> published mIoU, per cent."""
    numbers = published()
    keys = numbers.method + " / " + numbers.inference
    return dict(zip(keys, numbers.miou_percent.astype(float), strict=True))


def survival(found: Difference) -> str:
    """What a difference says of a ranking by which the first run is better."""
    if not found.told:
        return UNTOLD
    return SURVIVES if found.value > 0 else TURNED


RELEASED_COLUMNS = (
    "dataset",
    "meant",
    "released",
    "points",
    "low_points",
    "high_points",
    "verdict",
    "memory_ratio",
    "latency_ratio",
)
RELEASED: Columns = {
    "meant": ("as meant", str),
    "released": ("as released", str),
    "points": ("released less meant, points", lambda v: f"{v:+.1f}"),
    "low_points": ("from", lambda v: f"{v:+.1f}"),
    "high_points": ("to", lambda v: f"{v:+.1f}"),
    "verdict": ("accuracy", str),
    "memory_ratio": ("memory, times", lambda v: style.NOTHING if pd.isna(v) else f"{v:.2f}"),
    "latency_ratio": ("latency, times", lambda v: style.NOTHING if pd.isna(v) else f"{v:.2f}"),
}


def released(entries: Sequence[Entry]) -> pd.DataFrame:
    """What doing as a released code does costs or brings: one line a pair of runs that differ in
    nothing else."""
    lines = []
    meant = {_told_apart_from(e): e for e in entries if is_uhr(e) and done(e) == "as meant"}
    for entry in entries:
        other = meant.get(_told_apart_from(entry))
        if "released" not in done(entry) or other is None:
            continue
        line: dict[str, Any] = {
            "dataset": entry.model.dataset,
            "meant": other.name,
            "released": entry.name,
            "memory_ratio": _quotient(_bytes(entry), _bytes(other)),
            "latency_ratio": _quotient(_seconds(entry), _seconds(other)),
        }
        if entry.evaluation and other.evaluation:
            found = bootstrap.difference(sample(entry), sample(other))
            line |= {
                "points": 100 * found.value,
                "low_points": 100 * found.low,
                "high_points": 100 * found.high,
                "verdict": {"beats": "better", "is beaten by": "worse"}.get(
                    found.verdict, "cannot be told apart"
                ),
            }
        lines.append(line)
    return pd.DataFrame(lines, columns=list(RELEASED_COLUMNS))


def _told_apart_from(entry: Entry) -> str:
    """What two runs share that differ in `official` alone."""
    spec = {**entry.model.spec, **entry.run.overrides}
    spec.pop("official", None)
    parts = (entry.model.dataset, entry.model.method, entry.run.strategy, entry.model.seed)
    return repr((parts, sorted(spec.items(), key=lambda pair: pair[0])))


def _bytes(entry: Entry) -> float | None:
    found = entry.measurement.get("meters", {}).get("allocated")
    return float(found["bytes"]) if found else None


def _seconds(entry: Entry) -> float | None:
    found = entry.measurement.get("latency_s")
    return statistics.median(found) if found else None


def _quotient(one: float | None, other: float | None) -> float | None:
    return one / other if one and other else None


UNSPECIFIED_COLUMNS: Columns = {
    "method": ("method", str),
    "miou": ("published mIoU %", style.percent),
    "bytes": ("published memory", style.size),
    "fps": ("published FPS", rate),
    "missing": ("what is missing", str),
}


def unspecified() -> pd.DataFrame:
    """Methods that nothing public specifies well enough to be run: what is published of them on
    DeepGlobe, and what is missing."""
    numbers = published()
    numbers = numbers[(numbers.inference == "not re-run") & (numbers.dataset == "DeepGlobe")]
    frame = pd.read_csv(UNSPECIFIED).merge(numbers, on="method", how="left", validate="1:1")
    return pd.DataFrame(
        {
            "method": frame.method,
            "miou": frame.miou_percent / 100,
            "bytes": (frame.memory_mb * MB).astype("Int64"),
            "fps": frame.fps,
            "missing": frame.missing,
        }
    )


def sentences(ranks: pd.DataFrame, pairs: pd.DataFrame, predicted: pd.DataFrame) -> list[str]:
    """What the tables come to."""
    said = []
    for name, own in ranks.groupby("dataset"):
        counts = own.verdict.value_counts()
        said.append(
            f"Of {len(own)} published rankings of two methods, on {name} "
            f"{counts.get(SURVIVES, 0)} survive, {counts.get(TURNED, 0)} are turned round, and of "
            f"{counts.get(UNTOLD, 0)} the scenes cannot tell."
        )
        if counts.get(UNLEARNT, 0):
            said.append(
                f"{counts[UNLEARNT]} are not asked: a run in them is not above nearest class-mean "
                "colour, or hardly above one answer everywhere, and says nothing of its method."
            )
        said += [
            f"Turned round on {name}: {row['better']} over {row['worse']}, published by "
            f"{row['published_points']:.1f} points, here {row['points']:+.1f} "
            f"({row['low_points']:+.1f} to {row['high_points']:+.1f})."
            for row in own[own.verdict == TURNED].to_dict("records")
        ]
    for row in pairs.to_dict("records"):
        parts = []
        if pd.notna(row["points"]):
            parts.append(f"{row['points']:+.1f} points of mIoU ({row['verdict']})")
        if pd.notna(row["memory_ratio"]):
            parts.append(f"{row['memory_ratio']:.2f} times the memory")
        if pd.notna(row["latency_ratio"]):
            parts.append(f"{row['latency_ratio']:.2f} times the time")
        if parts:
            said.append(f"{row['released']} against {row['meant']}: {', '.join(parts)}.")
    if len(predicted):
        asked = predicted.dropna(subset=["ratio"])
        met = asked.verdict.str.startswith("within").sum()
        said.append(
            f"Predicted memory is within {WITHIN[-1]:.0%} of what is published in {met} of "
            f"{len(asked)} lines; every other line says what would have to be true."
        )
    return said
