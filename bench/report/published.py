"""Ours beside what papers print: the verdict on each run, and the ultra-high-resolution methods under
one protocol: which published ranking survives, and what the quirks of the released codes change."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd

from bench.errors import UserError
from bench.report import bootstrap, style
from bench.report.bootstrap import Difference, of_entry
from bench.report.findings import limits
from bench.report.load_records import (
    BASELINE,
    Entry,
    median,
    method_name,
    published,
    published_key,
    published_rows,
)
from bench.report.section import Section, section, sentences, table

UNSPECIFIED = Path(__file__).resolve().parents[1] / "unspecified.csv"
POINTS = (0.5, 1.0, 2.0)
"""mIoU is reproduced within the first of these that holds; beyond the last it is not. A plot can be
read to about 0.3 points, and no paper seen gives its spread over seeds."""
SHARES = (0.05, 0.15)
"""The same for memory, as a share of what is published."""
VARIANTS = ("glnet", "isdnet", "fctl", "magnet", "rue", "pointrend", "cascadepsp")
"""Methods that can be run as released or corrected."""
SURVIVES, TURNED, UNKNOWN = "survives", "is reversed", "cannot be decided"
UNTRAINED = "excluded: below baseline"
"""Of a ranking in which `bootstrap.excluded` names a run."""
RANKINGS = {"survive": SURVIVES, "reversed": TURNED, "unknown": UNKNOWN, "untrained": UNTRAINED}
"""Verdicts on a published ranking, by their names in texts."""


def verdict_section(entries: Sequence[Entry], runs: pd.DataFrame) -> Section:
    """One line a run with a `published` row, in the suite's order; empty where the suite has none.

    mIoU is compared by the run's own definition where it states one, else by the official one,
    which the paper's numbers come from; memory by the process total (NVML), as in the paper, and
    never by a figure of another kind.

    Args:
        runs: the table of all runs.

    Raises:
        UserError: a run names a row that bench/published.csv does not have.
    """
    known, own, lines = published_rows(), runs.set_index("run"), []
    for entry in entries:
        key = entry.run.published
        if key is not None and key not in known:
            raise UserError(
                f"params.yaml: runs.{entry.name}.published is {key!r}, but bench/published.csv has "
                "no such METHOD / inference, or only a recalled one."
            )
        if key is not None:
            lines.append(_verdicts(entry, {"published": key, **known[key]}, own.loc[entry.name]))
    return section("published", lines)


def uhr_section(entries: Sequence[Entry], runs: pd.DataFrame) -> Section:
    """One line a run of an ultra-high-resolution method, best first: mIoU on test with its
    interval, memory by every meter, latency by our protocol and by theirs, and what is published of
    it on DeepGlobe.

    Args:
        runs: the table of all runs.
    """
    own, known = [one for one in entries if is_uhr(one)], published_rows()
    numbers = runs.set_index("run", drop=False).to_dict("index")
    rows = [
        {
            **numbers[one.name],
            **known.get(_published_key(one), {}),
            "done": done(one),
            "forward_s": median(one.measurement.get("forward_s")),
        }
        for one in own
    ]
    frame = table("uhr_methods", rows).sort_values(
        ["dataset", "miou"], ascending=[True, False], kind="stable", ignore_index=True
    )
    evaluated = [of_entry(one) for one in own if one.evaluation]
    return section("uhr_methods", frame, fill={"limits": limits(evaluated)})


def ranking_section(entries: Sequence[Entry]) -> Section:
    """Every pair of methods that papers rank on DeepGlobe, and what is left of it here: points of
    mIoU with the paired interval of their difference."""
    points = published().set_index("key").miou_percent
    baselines = {
        entry.dataset: bootstrap.miou(of_entry(entry))
        for entry in entries
        if entry.network == BASELINE and entry.evaluation
    }
    flagships: dict[tuple[str, str], Entry] = {}  # the first run of each that is not as released
    for entry in entries:
        if _published_key(entry) and entry.evaluation and "released" not in done(entry):
            flagships.setdefault((entry.dataset, _published_key(entry)), entry)
    rows = []
    for one, other in combinations(flagships.items(), 2):
        # Of two that are published as equal there is no ranking.
        (worse, second), (better, first) = sorted((other, one), key=lambda pair: points[pair[0][1]])
        samples = of_entry(first), of_entry(second)
        same = better[0] == worse[0] and bootstrap.comparable(*samples)
        gap = points[better[1]] - points[worse[1]]
        if not same or not gap:
            continue
        found = bootstrap.difference(*samples)
        lost = any(bootstrap.excluded(one, baselines.get(better[0])) for one in samples)
        survival = {"beats": SURVIVES, "is beaten by": TURNED}.get(found.verdict, UNKNOWN)
        rows.append(
            {
                "dataset": better[0],
                "better": better[1].partition(" / ")[0],
                "worse": worse[1].partition(" / ")[0],
                "published_points": gap,
                **_in_points(found),
                "verdict": UNTRAINED if lost else survival,
            }
        )
    frame, said = table("ranking", rows), []
    for name, own in frame.groupby("dataset"):
        numbers = {one: (own.verdict == verdict).sum() for one, verdict in RANKINGS.items()}
        said += sentences("ranking", dataset=name, count=len(own), **numbers)
        for row in own[own.verdict == TURNED].to_dict("records"):
            said += sentences("reversed", **{str(key): one for key, one in row.items()})
    return section("ranking", frame, findings=said)


def released_section(entries: Sequence[Entry], runs: pd.DataFrame) -> Section:
    """What the quirks of a released code cost or bring: one line a pair of runs that differ in
    nothing else.

    Args:
        runs: the table of all runs.
    """
    cost = runs.set_index("run")[["allocated_bytes", "latency_s"]].astype(float)
    corrected = {_but_official(e): e for e in entries if is_uhr(e) and done(e) == "corrected"}
    rows = []
    for entry in entries:
        other = corrected.get(_but_official(entry))
        if "released" not in done(entry) or other is None:
            continue
        memory, latency = cost.loc[entry.name] / cost.loc[other.name]
        line = {
            "dataset": entry.dataset,
            "corrected": other.name,
            "released": entry.name,
            "memory_ratio": memory,
            "latency_ratio": latency,
        }
        if entry.evaluation and other.evaluation:
            found = bootstrap.difference(of_entry(entry), of_entry(other))
            verdicts = {"beats": "better", "is beaten by": "worse"}
            line |= {**_in_points(found), "verdict": verdicts.get(found.verdict, found.verdict)}
        rows.append(line)
    frame = table("released", rows)
    known = frame.dropna(how="all", subset=["points", "memory_ratio", "latency_ratio"])
    said = [text for row in known.to_dict("records") for text in sentences("released", row=row)]
    return section("released", frame, findings=said)


def unspecified_section() -> Section:
    """Methods that nothing public specifies in full: what is published of them on DeepGlobe, what is
    missing, and whether they are run with choices of ours."""
    numbers, frame = published(), pd.read_csv(UNSPECIFIED)
    own = numbers[(numbers.dataset == "DeepGlobe") & numbers.method.isin(frame.method)]
    frame = frame.merge(own, on="method", how="left", validate="1:1")
    return section("unspecified", frame[["method", "here", "miou", "bytes", "fps", "missing"]])


def is_uhr(entry: Entry) -> bool:
    """Whether a run is of a method for ultra-high resolution, not of a generic baseline."""
    return method_name(entry.model.method) != "generic"


def done(entry: Entry) -> str:
    """`as released`, `corrected`, or empty where a method does not tell them apart."""
    official = {**entry.model.spec, **entry.run.overrides}.get("official", False)
    if official:
        return "as released" if official is True else "in part as released"
    return "corrected" if method_name(entry.model.method) in VARIANTS else ""


def _verdicts(entry: Entry, theirs: Mapping[str, Any], ours: Any) -> dict[str, Any]:
    definition = "stated" if entry.run.metric else "official"
    published_bytes, dataset = theirs["published_bytes"], theirs["published_dataset"]
    known = pd.notna(published_bytes)
    failures = {"oom": "not reproduced: out of memory", "failed": "failed"}
    line: dict[str, Any] = {
        **theirs,
        "run": entry.name,
        "network": entry.network,
        "dataset": dataset,
        "verdict": failures.get(entry.status, "not run"),
        "memory_verdict": "not run" if known else "none published",
    }
    if dataset.lower() != entry.dataset.lower():
        return line | {"verdict": "another data set", "memory_verdict": "another data set"}
    if entry.evaluation:
        miou = ours[f"miou_{definition}"]
        points = 100 * (miou - theirs["published_miou"])
        line |= {"miou": miou, "difference_points": points}
        line["definition"] = "as stated" if definition == "stated" else definition
        line["verdict"] = _closest(abs(points), POINTS, "{:.1f} points")
    if known and pd.notna(ours.nvml_bytes):
        ratio = ours.nvml_bytes / published_bytes
        line |= {"nvml_bytes": ours.nvml_bytes, "memory_ratio": ratio}
        line["memory_verdict"] = _closest(abs(ratio - 1), SHARES, "{:.0%}")
    elif known and entry.measurement:
        line["memory_verdict"] = "not measured on a GPU"
    return line


def _closest(distance: float, limits: Sequence[float], form: str) -> str:
    """The closest limit that holds."""
    held = [limit for limit in limits if distance <= limit]
    return f"reproduced within {form.format(held[0])}" if held else "not reproduced"


def _published_key(entry: Entry) -> str:
    return published_key(entry.model.method, entry.run.strategy)


def _in_points(found: Difference) -> dict[str, float]:
    ends = {"points": found.value, "low_points": found.low, "high_points": found.high}
    return {name: 100 * share for name, share in ends.items()}


def _but_official(entry: Entry) -> str:
    """What two runs share that differ in `official` alone."""
    spec = {**entry.model.spec, **entry.run.overrides}
    spec.pop("official", None)
    parts = (entry.dataset, entry.model.method, entry.run.strategy, entry.model.seed)
    return repr((parts, sorted(spec.items(), key=lambda pair: pair[0])))


def methods_section(networks: Iterable[str]) -> Section:
    """Papers and codes of networks, where they are known."""
    known = style.CREDITS["methods"]
    hosts = {"arxiv": "https://arxiv.org/abs/", "code": "https://github.com/"}

    def look(name: str, row: Any) -> dict[str, Any]:
        value = row[name]
        return {"target": hosts[name] + value} if name in hosts and pd.notna(value) else {}

    rows = [{"network": one, **known[one]} for one in networks if one in known]
    return section("about/methods", rows, look=look)
