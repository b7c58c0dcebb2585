"""Every ultra-high-resolution method under one protocol: what each comes to here, what is published
of it, which published ranking survives, and what the quirks of the released codes change."""

import statistics
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd

from bench.record import Record
from bench.report import bootstrap
from bench.report.bootstrap import Difference, of_entry
from bench.report.load_records import (
    BASELINE,
    MB,
    Entry,
    method_name,
    published,
    published_rows,
    values,
)
from bench.report.memory import variant
from bench.report.section import Section, section, table

UNSPECIFIED = Path(__file__).resolve().parents[1] / "unspecified.csv"
KNOWN = {
    ("glnet", "collaborative"): "GLNet G<->L / collaborative",
    ("fctl", "contexts"): "FCtL / contexts",
    ("isdnet", "whole"): "ISDNet / whole",
    ("magnet", "progressive"): "MagNet / progressive",
    ("magnet", "fast"): "MagNet-Fast / fast",
    ("pointrend", "whole"): "PointRend / whole",
    ("cascadepsp", "cascade"): "CascadePSP / cascade",
}
"""(method, strategy) -> the row of bench/published.csv that its papers print of DeepGlobe."""
VARIANTS = ("glnet", "isdnet", "fctl", "magnet")
"""Methods that can be run as released or corrected."""
WITHIN = (0.05, 0.15)
"""Shares of the published memory that a prediction may be off by."""
SURVIVES, TURNED, UNKNOWN = "survives", "is reversed", "cannot be decided"
UNTRAINED = "is left out: one is no better than the baseline"
"""A run that is not above nearest class-mean colour, or hardly above one class everywhere, says
nothing of its method."""
HARDLY = 0.01
"""Of mIoU."""
CI = "low_points high_points"


def runs_section(entries: Sequence[Entry], runs: pd.DataFrame) -> Section:
    """One line a run of such a method, best first: mIoU on test with its interval, memory by every
    meter, latency by our protocol and by theirs, and what is published of it on DeepGlobe.

    Args:
        runs: the table of all runs.
    """
    known, own = published_rows(), runs.set_index("run", drop=False)
    rows = []
    for entry in filter(is_uhr, entries):
        row = own.loc[entry.name]
        line = {**row, "method": row.network, "done": done(entry)}
        line["fps"] = 1 / row.latency_s if row.latency_s else None
        line |= {"low": row.miou_low, "high": row.miou_high}
        if entry.measurement.get("forward_s"):
            line["forward_s"] = statistics.median(entry.measurement["forward_s"])
            line["forward_fps"] = 1 / line["forward_s"]
        theirs = known.get(_published_key(entry))
        if theirs is not None:
            line |= {
                f"published_{name}": getattr(theirs, name) for name in ("miou", "bytes", "fps")
            }
        rows.append(line)
    names = (
        "dataset run method strategy done miou low high allocated_bytes nvml_bytes rss_bytes "
        "predicted_bytes latency_s fps forward_s forward_fps published_miou published_bytes "
        "published_fps"
    )
    frame = table(rows, names).sort_values(
        ["dataset", "miou"], ascending=[True, False], kind="stable", ignore_index=True
    )
    evaluated = [of_entry(one) for one in entries if is_uhr(one) and one.evaluation]
    return section(
        "uhr_methods",
        rows=frame,
        show=names.removeprefix("dataset "),
        fill={"limits": bootstrap.limits(evaluated)},
    )


def ranking_section(entries: Sequence[Entry]) -> Section:
    """Every pair of methods that papers rank on DeepGlobe, and what is left of it here: points of
    mIoU with the paired interval of their difference."""
    points = {key: row.miou_percent for key, row in published_rows().items()}
    baselines = {
        entry.dataset: bootstrap.miou(of_entry(entry))
        for entry in entries
        if entry.network == BASELINE and entry.evaluation
    }
    rows = []
    for one, other in combinations(_flagships(entries).items(), 2):
        # Of two that are published as equal there is no ranking.
        (worse, second), (better, first) = sorted((other, one), key=lambda pair: points[pair[0][1]])
        samples = of_entry(first), of_entry(second)
        same = better[0] == worse[0] and bootstrap.comparable(*samples)
        if not same or points[better[1]] == points[worse[1]]:
            continue
        found = bootstrap.difference(*samples)
        least = max(baselines.get(better[0], 0.0), bootstrap.one_answer(samples[0]) + HARDLY)
        trained = min(map(bootstrap.miou, samples)) > least
        rows.append(
            {
                "dataset": better[0],
                "better": better[1].partition(" / ")[0],
                "worse": worse[1].partition(" / ")[0],
                "published_points": points[better[1]] - points[worse[1]],
                **_in_points(found),
                "verdict": survival(found) if trained else UNTRAINED,
            }
        )
    return section(
        "ranking",
        rows=table(rows, f"dataset better worse published_points points {CI} verdict"),
        show=f"better worse published_points points {CI} verdict",
        findings=ranking_sentences,
    )


def released_section(entries: Sequence[Entry]) -> Section:
    """What the quirks of a released code cost or bring: one line a pair of runs that differ in
    nothing else."""
    corrected = {_but_official(e): e for e in entries if is_uhr(e) and done(e) == "corrected"}
    rows = []
    for entry in entries:
        other = corrected.get(_but_official(entry))
        if "released" not in done(entry) or other is None:
            continue
        line: dict[str, Any] = {
            "dataset": entry.dataset,
            "corrected": other.name,
            "released": entry.name,
            "memory_ratio": _quotient(*(_bytes(one) for one in (entry, other))),
            "latency_ratio": _quotient(*(_seconds(one) for one in (entry, other))),
        }
        if entry.evaluation and other.evaluation:
            found = bootstrap.difference(of_entry(entry), of_entry(other))
            verdicts = {"beats": "better", "is beaten by": "worse"}
            line |= {**_in_points(found), "verdict": verdicts.get(found.verdict, "no difference")}
        rows.append(line)
    names = f"corrected released points {CI} verdict memory_ratio latency_ratio"
    return section(
        "released", rows=table(rows, f"dataset {names}"), show=names, findings=released_sentences
    )


def memory_section(predicted: Record | None) -> Section:
    """One line a method, a variant and an image size: predicted and published memory, their ratio,
    and a verdict.

    Args:
        predicted: the record of the stage that predicts the ultra-high-resolution methods.
    """
    found, known, rows = values(predicted), published_rows(), []
    for row in found.get("rows", []):
        key = row["published"] or KNOWN[method_name(row["method"]), row["strategy"]]
        if row["dataset"] != "DeepGlobe":
            method, _, inference = key.partition(" / ")
            key = f"{method.split()[0]} on {row['dataset'].split()[0]} / {inference}"
        theirs = known.get(key)
        printed = None if theirs is None or pd.isna(theirs.bytes) else int(theirs.bytes)
        rows.append(
            {
                **row,
                "done": variant(row["done"]),
                "predicted_bytes": row["device_bytes"],
                "published_bytes": printed,
                "ratio": row["device_bytes"] / printed if printed else None,
                "verdict": verdict(row, printed),
            }
        )
    names = (
        "dataset run done side_px predicted_bytes reserved_bytes weights_bytes host_bytes "
        "published_bytes ratio verdict"
    )
    return section(
        "uhr_memory",
        rows=table(rows, names),
        show=names,
        fill={"definition": found.get("definition", "")},
        findings=memory_sentences,
    )


def unspecified_section() -> Section:
    """Methods that nothing public specifies well enough to be run: what is published of them on
    DeepGlobe, and what is missing."""
    numbers = published()
    own = numbers[(numbers.inference == "not re-run") & (numbers.dataset == "DeepGlobe")]
    frame = pd.read_csv(UNSPECIFIED).merge(own, on="method", how="left", validate="1:1")
    names = "method miou bytes fps missing"
    return section("unspecified", rows=frame[names.split()], show=names)


def is_uhr(entry: Entry) -> bool:
    """Whether a run is of a method for ultra-high resolution, not of a generic baseline."""
    return method_name(entry.model.method) != "generic"


def done(entry: Entry) -> str:
    """`as released`, `corrected`, or empty where a method does not tell them apart."""
    official = {**entry.model.spec, **entry.run.overrides}.get("official", False)
    if official:
        return "as released" if official is True else "in part as released"
    return "corrected" if method_name(entry.model.method) in VARIANTS else ""


def survival(found: Difference) -> str:
    """What a difference says of a ranking by which the first run is better."""
    if not found.significant:
        return UNKNOWN
    return SURVIVES if found.value > 0 else TURNED


def verdict(row: dict[str, Any], printed: int | None) -> str:
    """Whether the tensors alone explain a published figure, and if not, what would have to be true.

    Args:
        row: of the record; printed: published bytes.
    """
    if printed is None:
        return "none published"
    predicted, weights = row["device_bytes"], row["weights_bytes"]
    for share in WITHIN:
        if abs(predicted / printed - 1) <= share:
            return f"within {share:.0%}"
    off = abs(predicted - printed) / MB
    if predicted < printed:
        rest = (printed - (row["reserved_bytes"] or predicted)) / MB
        if rest <= 0:
            return f"{off:.0f} MiB more, which is within what an allocator keeps reserved"
        return (
            f"{off:.0f} MiB more: {rest:.0f} MiB of context and workspace beside what is reserved"
        )
    reason = "a smaller patch or network"
    if row["strategy"] == "whole" and printed > weights:
        scale = ((printed - weights) / (predicted - weights)) ** 0.5
        reason = f"an image of {scale:.2f} of these sides at most, or leaner maps"
    elif weights >= printed:
        reason = "fewer weights, which alone are more"
    return f"{off:.0f} MiB less: {reason}"


def ranking_sentences(ranks: pd.DataFrame) -> list[str]:
    """How many published rankings survive."""
    said = []
    for name, own in ranks.groupby("dataset"):
        count = own.verdict.value_counts().to_dict()
        said.append(
            f"Of {len(own)} published rankings of two methods, on {name} "
            f"{count.get(SURVIVES, 0)} survive, {count.get(TURNED, 0)} are reversed, and "
            f"{count.get(UNKNOWN, 0)} cannot be decided on these scenes."
        )
        if UNTRAINED in count:
            said.append(
                f"{count[UNTRAINED]} are left out: a run in them is not above nearest class-mean "
                "colour, or hardly above one class everywhere."
            )
        said += [
            f"Reversed on {name}: {row['better']} over {row['worse']}, published by "
            f"{row['published_points']:.1f} points, here {row['points']:+.1f} "
            f"({row['low_points']:+.1f} to {row['high_points']:+.1f})."
            for row in own[own.verdict == TURNED].to_dict("records")
        ]
    return said


def released_sentences(pairs: pd.DataFrame) -> list[str]:
    """What each pair comes to."""
    said = []
    for row in pairs.to_dict("records"):
        parts = {
            "points": f"{row['points']:+.1f} points of mIoU ({row['verdict']})",
            "memory_ratio": f"{row['memory_ratio'] or 0:.2f} times the memory",
            "latency_ratio": f"{row['latency_ratio'] or 0:.2f} times the time",
        }
        known = [text for name, text in parts.items() if pd.notna(row[name])]
        if known:
            said.append(f"{row['released']} against {row['corrected']}: {', '.join(known)}.")
    return said


def memory_sentences(predicted: pd.DataFrame) -> list[str]:
    """How many predictions meet what is published."""
    known = predicted.dropna(subset=["ratio"])
    met = known.verdict.astype(str).str.startswith("within").sum()
    return [
        f"Predicted memory is within {WITHIN[-1]:.0%} of what is published in {met} of "
        f"{len(known)} lines; every other line says what would have to be true."
    ] * bool(len(predicted))


def _flagships(entries: Sequence[Entry]) -> dict[tuple[str, str], Entry]:
    """(data set, published row) -> the run that represents it: the first one that is not run as
    released."""
    found: dict[tuple[str, str], Entry] = {}
    for entry in entries:
        if _published_key(entry) and entry.evaluation and "released" not in done(entry):
            found.setdefault((entry.dataset, _published_key(entry)), entry)
    return found


def _published_key(entry: Entry) -> str:
    return KNOWN.get((method_name(entry.model.method), entry.run.strategy), "")


def _in_points(found: Difference) -> dict[str, float]:
    return {
        "points": 100 * found.value,
        "low_points": 100 * found.low,
        "high_points": 100 * found.high,
    }


def _but_official(entry: Entry) -> str:
    """What two runs share that differ in `official` alone."""
    spec = {**entry.model.spec, **entry.run.overrides}
    spec.pop("official", None)
    parts = (entry.dataset, entry.model.method, entry.run.strategy, entry.model.seed)
    return repr((parts, sorted(spec.items(), key=lambda pair: pair[0])))


def _bytes(entry: Entry) -> float | None:
    found = entry.meters.get("allocated")
    return float(found["bytes"]) if found else None


def _seconds(entry: Entry) -> float | None:
    found = entry.measurement.get("latency_s")
    return statistics.median(found) if found else None


def _quotient(one: float | None, other: float | None) -> float | None:
    return one / other if one and other else None
