"""What the numbers say, in words that are worked out from them; a negative result is said as
plainly as a positive one."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bench import metrics
from bench.record import Record
from bench.report import bootstrap, pareto, quality_gate, style
from bench.report.evaluations import matrix, stated
from bench.report.load_records import BASELINE, Entry
from bench.report.pairs import Pairs, points, sentence

NAMED = 5
"""Runs that a sentence names; the table of pairs has them all."""

_FACTS = {
    "commit": "commit",
    "dirty": "uncommitted changes",
    "machine": "machine",
    "system": "system",
    "processor": "processor",
    "cores": "cores",
    "device": "device",
    "device_name": "card",
    "driver": "driver",
    "cuda": "CUDA",
    "cudnn": "cuDNN",
    "threads": "torch threads",
    "seed": "seed",
    "python": "Python",
    "data_sha256": "prepared data, SHA-256",
}


@dataclass(frozen=True)
class Finding:
    """One line of the summary."""

    topic: str
    text: str


@dataclass(frozen=True)
class Beaten:
    """A trained run that is not above the floor."""

    run: str
    miou: float
    why: str


def summary(frame: pd.DataFrame, meter: str, pairs: Pairs) -> list[Finding]:
    """What one data set's runs say; the verdict on GLNet first. One run beats another only where
    the interval of their difference says so.

    Args:
        frame: `table.runs` of one data set.
        meter: the column of memory.
        pairs: of the same runs.
    """
    trained = frame[(frame.network != BASELINE) & frame.miou.notna()]
    if trained.empty:
        return [Finding("No result yet", "No trained run has been evaluated: run `dvc repro`.")]
    floor = quality_gate.baseline_miou(frame)
    best = _most(trained)
    findings = _verdict(trained, meter, floor, pairs)
    near = _near(best, trained, pairs)
    findings.append(Finding("Most accurate", f"{best.run}: {_point(best, meter)}.{near}"))
    findings += _gate(trained, meter, floor)
    if floor is not None:
        findings.append(
            Finding(
                "The floor",
                f"{style.percent(floor)} % mIoU by nearest class-mean colour, which knows one "
                f"colour a class and no neighbourhood. {_over_the_floor(frame, trained, pairs)}",
            )
        )
    if pairs.samples:
        findings.append(Finding("How sure this is", bootstrap.limits(pairs.samples)))
    return findings + _unfinished(frame)


def not_above_floor(entries: Sequence[Entry], frame: pd.DataFrame) -> list[Beaten]:
    """Trained runs of one data set whose test mIoU is not above the floor's, worst first, and what
    their confusion matrices say about it."""
    floor = quality_gate.baseline_miou(frame)
    if floor is None:
        return []
    miou = frame.set_index("run").miou
    beaten = [
        Beaten(entry.name, float(miou[entry.name]), _why(entry))
        for entry in entries
        if entry.evaluation and entry.network != BASELINE and miou[entry.name] <= floor
    ]
    return sorted(beaten, key=lambda found: found.miou)


def reservations(entries: Sequence[Entry]) -> list[tuple[str, str]]:
    """(run, what its measurement could not see, or not for certain)."""
    found = []
    for entry in entries:
        for meter, reason in entry.measurement.get("missing", {}).items():
            found.append((entry.name, f"no {meter}: {reason}"))
        for name, meter in entry.measurement.get("meters", {}).items():
            if meter.get("doubt"):
                found.append((entry.name, f"{name} is in doubt: {meter['doubt']}"))
    return found


def where(frame: pd.DataFrame, records: Iterable[Record]) -> str:
    """The device of the measurements, for an axis: a CPU's memory is not a GPU's."""
    devices = set(frame.device.dropna())
    if devices == {"cpu"}:
        return "measured on a CPU: not a GPU's memory"
    facts = [record.provenance for record in records]
    cards = sorted({str(fact["device_name"]) for fact in facts if "device_name" in fact})
    return f"measured on {', '.join(cards or sorted(devices)) or 'no machine yet'}"


def machine(records: Iterable[Record]) -> str:
    """The machine of the measurements, for a caption: its name in the suite, processor, threads."""
    found = [record.provenance for record in records if record.stage == "measure"]
    named = {
        f"{fact.get('machine', 'unnamed')} ({fact.get('processor', 'processor unknown')}, "
        f"{fact.get('cores', '?')} cores, {fact.get('threads', '?')} threads)"
        for fact in found
    }
    return "; ".join(sorted(named)) or "no machine yet"


def definitions(entries: Sequence[Entry]) -> dict[str, str]:
    """Meter -> its definition, and `latency`, as the records say them; and what runs state of their
    own mIoU."""
    own = [metrics.describe(**stated(e)) for e in entries if e.run.metric and e.evaluation]
    found = {"miou_stated": _distinct(own)} if own else {}
    for entry in entries:
        for name, meter in entry.measurement.get("meters", {}).items():
            found.setdefault(name, meter["definition"])
        if "latency_definition" in entry.measurement:
            found.setdefault("latency", entry.measurement["latency_definition"])
        if "network_definition" in entry.measurement:
            found.setdefault("network alone", entry.measurement["network_definition"])
    return found


def facts(records: Iterable[Record]) -> list[tuple[str, str]]:
    """What the records' provenances say; where they disagree, every value and how often."""
    all_of_them = list(records)
    rows = []
    for key, name in _FACTS.items():
        values = [_said(r.provenance[key]) for r in all_of_them if key in r.provenance]
        if values:
            rows.append((name, _distinct(values)))
    versions: dict[str, list[str]] = {}
    for found in all_of_them:
        for name, version in found.provenance.get("versions", {}).items():
            versions.setdefault(name, []).append(str(version))
    return rows + [(name, _distinct(values)) for name, values in sorted(versions.items())]


def _gate(trained: pd.DataFrame, meter: str, floor: float | None) -> list[Finding]:
    """Who takes least memory of those that pass, and who does not pass."""
    share = f"{100 * quality_gate.SHARE:.0f} % of the best mIoU"
    useful = trained[(trained.share_of_best >= quality_gate.SHARE) & trained[meter].notna()]
    if floor is not None:
        useful = useful[useful.miou > floor]
    found = []
    if not useful.empty:
        least = useful.sort_values(meter, kind="stable").iloc[0]
        text = f"of those that reach {share}, {least.run}: {_point(least, meter)}."
        found.append(Finding("Least memory", text))
    missed = quality_gate.missed(trained)
    text = f"{len(missed)} of {len(trained)} trained runs miss {share}: {', '.join(missed)}."
    if not missed:
        text = f"All {len(trained)} trained runs reach {share}."
    return [*found, Finding("Quality gate", text)]


def _near(best: Any, trained: pd.DataFrame, pairs: Pairs) -> str:
    """Which runs the data cannot tell from the most accurate one."""
    near = [
        str(run)
        for run in trained.sort_values("miou", ascending=False, kind="stable").run
        if (one := pairs.between(best.run, run)) is not None and not one.told
    ]
    if not near:
        return ""
    named = ", ".join(near[:NAMED]) + (" ..." if len(near) > NAMED else "")
    return f" The data cannot tell {len(near)} of the others from it: {named}."


def _over_the_floor(frame: pd.DataFrame, trained: pd.DataFrame, pairs: Pairs) -> str:
    """How many trained runs beat the floor, and how many it beats."""
    floor = str(frame[(frame.network == BASELINE) & frame.miou.notna()].run.iloc[0])
    found = [pairs.between(str(run), floor) for run in trained.run]
    counted = Counter(one.verdict if one else None for one in found)
    return (
        f"Of {len(trained)} trained runs {counted['beats']} beat it, "
        f"{counted['is beaten by']} are beaten by it, and the data cannot tell "
        f"{len(trained) - counted['beats'] - counted['is beaten by']} from it."
    )


def _verdict(trained: pd.DataFrame, meter: str, floor: float | None, pairs: Pairs) -> list[Finding]:
    """GLNet against its rivals, on accuracy, on the front, and against its own branches."""
    ours, rivals = trained[trained.network == "glnet"], trained[trained.network != "glnet"]
    if ours.empty or rivals.empty:
        return []
    own, rival = _most(ours), _most(rivals)
    cost = ""
    if pd.notna(own[meter]) and pd.notna(rival[meter]):
        cost = f"; it takes {float(own[meter]) / float(rival[meter]):.2g} times the rival's memory"
    one = pairs.between(own.run, rival.run)
    said = _apart(own, rival) if one is None else sentence(one)
    head = "GLNet wins on accuracy" if one and one.low > 0 else "GLNet does not win on accuracy"
    text = f"{head}; its best run against the best rival: {said}{cost}."
    front = pareto.front(trained, meter, floor)
    on_it = [str(run) for run in ours.run if run in front]
    places = (
        f"On the Pareto front: {', '.join(on_it)}."
        if on_it
        else "None of its measured runs is on the Pareto front."
    )
    return [Finding("GLNet", f"{text} {places}"), *_lending(ours, pairs)]


def _apart(own: Any, other: Any) -> str:
    """Of runs that no interval was worked out for."""
    return (
        f"{own.run} lies {points(own.miou - other.miou)} points of mIoU from {other.run}, which "
        "says little without the same scenes for both"
    )


def _most(frame: pd.DataFrame) -> Any:
    """The most accurate row."""
    return frame.sort_values("miou", ascending=False, kind="stable").iloc[0]


def _lending(ours: pd.DataFrame, pairs: Pairs) -> list[Finding]:
    """Whether GLNet's branches are better together."""
    together = ours[ours.strategy.isin(["global-to-local", "collaborative"])]
    alone = ours[ours.strategy.isin(["global", "local"])]
    if together.empty or alone.empty:
        return []
    both, one = _most(together), _most(alone)
    found = pairs.between(both.run, one.run)
    pays = "makes no difference that the data could show"
    if found is not None and found.told:
        pays = "pays" if found.value > 0 else "costs accuracy"
    said = _apart(both, one) if found is None else sentence(found)
    # Not "lending": the best run may be one in which the aggregation alone joins them.
    text = f"Joining its branches {pays} here, against the better of them alone: {said}."
    return [Finding("Its branches", text)]


def _unfinished(frame: pd.DataFrame) -> list[Finding]:
    rest = frame[frame.status != "ok"]
    if rest.empty:
        return []
    listed = ", ".join(f"{row.run} ({row.status})" for _, row in rest.iterrows())
    return [Finding("Not complete", f"{len(rest)} of {len(frame)} runs: {listed}.")]


def _point(row: Any, meter: str) -> str:
    memory = f" at {style.size(row[meter])}" if pd.notna(row[meter]) else ""
    return f"{style.percent(row.miou)} % mIoU{memory}"


def _why(entry: Entry) -> str:
    """Which classes a run never predicts, and which one it predicts too often."""
    names = list(entry.evaluation["classes"])
    counts = matrix(entry, "test")[:-1]
    total = max(1, int(counts.sum()))
    truth, said = counts.sum(1) / total, counts.sum(0) / total
    never = [
        f"{name} ({style.percent(share)} % of the pixels)"
        for name, share, times in zip(names, truth, said, strict=True)
        if times == 0 and share > 0
    ]
    most = int(np.argmax(said - truth))
    parts = [f"never predicts {', '.join(never)}"] if never else ["predicts every class"]
    if said[most] > truth[most]:
        parts.append(
            f"says {names[most]} for {style.percent(said[most])} % of the pixels where "
            f"{style.percent(truth[most])} % are"
        )
    return "; ".join(parts)


def _said(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _distinct(values: Sequence[str]) -> str:
    counted = Counter(values)
    if len(counted) == 1:
        return values[0]
    total = len(values)
    return "; ".join(f"{value} ({n} of {total} records)" for value, n in sorted(counted.items()))
