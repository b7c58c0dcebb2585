"""What the numbers say, in sentences that are worked out from them; a negative result is said as
plainly as a positive one."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bench import metrics
from bench.record import Record
from bench.report import bootstrap, style
from bench.report.bootstrap import Difference, Pairs
from bench.report.evaluations import GATE, baseline_miou, front, matrix, stated
from bench.report.load_records import BASELINE, Entry
from bench.report.section import Finding, percent_points, spaced

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
    "device_name": "GPU",
    "driver": "driver",
    "cuda": "CUDA",
    "cudnn": "cuDNN",
    "threads": "torch threads",
    "seed": "seed",
    "python": "Python",
    "data_sha256": "prepared data, SHA-256",
}


def summary(frame: pd.DataFrame, meter: str, pairs: Pairs) -> list[Finding]:
    """What one data set's runs say; the verdict on GLNet first. One run beats another only where
    the interval of their difference says so.

    Args:
        frame: the table of all runs, of one data set.
        meter: the column of memory.
        pairs: of the same runs.
    """
    trained = frame[(frame.network != BASELINE) & frame.miou.notna()]
    if trained.empty:
        return [Finding("No result yet", "No trained run has been evaluated: run `dvc repro`.")]
    best = _most(trained)
    ranked = trained.sort_values("miou", ascending=False, kind="stable").run
    near = [run for run in ranked if (one := pairs.between(best.run, run)) and not one.significant]
    text = f"{best.run}: {_point(best, meter)}."
    if near:
        named = ", ".join(near[:NAMED]) + (" ..." if len(near) > NAMED else "")
        text += f" The data show no difference to {len(near)} of the others: {named}."
    return [
        *_glnet(trained, meter, baseline_miou(frame), pairs),
        Finding("Most accurate", text),
        *_gate(frame, trained, meter),
        *_baseline(frame, trained, pairs),
        *([Finding("Uncertainty", bootstrap.limits(pairs.samples))] if pairs.samples else []),
        *_unfinished(frame),
    ]


def baseline_finding(
    name: str, entries: Sequence[Entry], frame: pd.DataFrame
) -> tuple[str, list[Finding]]:
    """Trained runs of one data set whose test mIoU is not above the baseline's, worst first, and
    what their confusion matrices say about it: a sentence, and a line a run."""
    least = baseline_miou(frame)
    if least is None:
        return f"There is no baseline for {name}: nearest class-mean colour was not evaluated.", []
    miou = frame.set_index("run").miou
    below = [
        entry
        for entry in entries
        if entry.evaluation and entry.network != BASELINE and miou[entry.name] <= least
    ]
    if not below:
        text = f"On {name} every evaluated run lies above nearest class-mean colour, which reaches"
        return f"{text} {style.percent(least)} % mIoU.", []
    text = f"Nearest class-mean colour reaches {style.percent(least)} % mIoU on {name}. "
    return f"{text}These trained runs are not above it:", [
        Finding(entry.name, f"{style.percent(miou[entry.name])} %; {_why(entry)}.")
        for entry in sorted(below, key=lambda entry: float(miou[entry.name]))
    ]


def reservations(entries: Sequence[Entry]) -> list[Finding]:
    """What the measurement of a run could not see, or not for certain."""
    found = []
    for entry in entries:
        for meter, reason in entry.measurement.get("missing", {}).items():
            found.append(Finding(entry.name, f"no {meter}: {reason}"))
        for name, meter in entry.meters.items():
            if meter.get("doubt"):
                found.append(Finding(entry.name, f"{name} is in doubt: {meter['doubt']}"))
    return found


def where(frame: pd.DataFrame, records: Iterable[Record]) -> str:
    """The device of the measurements, for an axis: a CPU's memory is not a GPU's."""
    devices = set(frame.device.dropna())
    if devices == {"cpu"}:
        return "measured on a CPU: not a GPU's memory"
    names = sorted({str(one.provenance.get("device_name", "")) for one in records} - {""})
    return f"measured on {', '.join(names or sorted(devices)) or 'no machine yet'}"


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
        for name, meter in entry.meters.items():
            found.setdefault(name, meter["definition"])
        for key, name in (("latency", "latency"), ("network", "network alone")):
            if f"{key}_definition" in entry.measurement:
                found.setdefault(name, entry.measurement[f"{key}_definition"])
    return found


def provenance(records: Iterable[Record]) -> list[Finding]:
    """What the records' provenances say; where they disagree, every value and how often."""
    known: dict[str, list[str]] = {}
    for found in (record.provenance for record in records):
        facts: Mapping[str, Any] = {
            name: found[key] for key, name in _FACTS.items() if key in found
        }
        for name, value in {**facts, **dict(sorted(found.get("versions", {}).items()))}.items():
            text = ("no", "yes")[value] if isinstance(value, bool) else str(value)
            known.setdefault(name, []).append(text)
    own = [name for name in _FACTS.values() if name in known]
    order = [*own, *sorted(set(known) - set(own))]
    return [Finding(name, _distinct(known[name])) for name in order]


def _glnet(trained: pd.DataFrame, meter: str, least: float | None, pairs: Pairs) -> list[Finding]:
    """GLNet against its rivals, on accuracy, on the front, and against its own branches."""
    ours, rivals = trained[trained.network == "glnet"], trained[trained.network != "glnet"]
    if ours.empty or rivals.empty:
        return []
    own, rival = _most(ours), _most(rivals)
    cost = ""
    if pd.notna(own[meter]) and pd.notna(rival[meter]):
        cost = f"; it takes {float(own[meter]) / float(rival[meter]):.2g} times the rival's memory"
    one = pairs.between(own.run, rival.run)
    wins = "wins" if one and one.low > 0 else "does not win"
    choices = front(trained, meter, least)
    on_it = ", ".join(str(run) for run in ours.run if run in choices)
    places = (
        f"On the Pareto front: {on_it}." if on_it else "None of its runs is on the Pareto front."
    )
    text = f"GLNet {wins} on accuracy; its best run against the best rival: "
    found = [Finding("GLNet", f"{text}{_apart(own, rival, pairs)}{cost}. {places}")]
    together = ours[ours.strategy.isin(["global-to-local", "collaborative"])]
    alone = ours[ours.strategy.isin(["global", "local"])]
    if len(together) and len(alone):
        both, single = _most(together), _most(alone)
        difference = pairs.between(both.run, single.run)
        pays = "makes no significant difference"
        if difference is not None and difference.significant:
            pays = "pays" if difference.value > 0 else "costs accuracy"
        text = f"Joining its branches {pays} here, against the better of them alone: "
        found.append(Finding("Its branches", f"{text}{_apart(both, single, pairs)}."))
    return found


def _gate(frame: pd.DataFrame, trained: pd.DataFrame, meter: str) -> list[Finding]:
    """The run that takes least memory of those that pass, and those that do not pass."""
    share = f"{100 * GATE:.0f} % of the best mIoU"
    useful = trained[(trained.share_of_best >= GATE) & trained[meter].notna()]
    useful = useful[useful.miou > (baseline_miou(frame) or 0)]
    found = []
    if not useful.empty:
        least = useful.sort_values(meter, kind="stable").iloc[0]
        text = f"of those that reach {share}, {least.run}: {_point(least, meter)}."
        found.append(Finding("Least memory", text))
    missed = [str(run) for run in trained[trained.share_of_best < GATE].run]
    text = f"{len(missed)} of {len(trained)} trained runs miss {share}: {', '.join(missed)}."
    if not missed:
        text = f"All {len(trained)} trained runs reach {share}."
    return [*found, Finding("Quality gate", text)]


def _baseline(frame: pd.DataFrame, trained: pd.DataFrame, pairs: Pairs) -> list[Finding]:
    """How many trained runs beat the baseline, and how many it beats."""
    least = baseline_miou(frame)
    if least is None:
        return []
    own = str(frame[(frame.network == BASELINE) & frame.miou.notna()].run.iloc[0])
    found = [pairs.between(str(run), own) for run in trained.run]
    counted = Counter(one.verdict if one else None for one in found)
    rest = len(trained) - counted["beats"] - counted["is beaten by"]
    text = (
        f"{style.percent(least)} % mIoU by nearest class-mean colour, which looks at one pixel at "
        f"a time. Of {len(trained)} trained runs {counted['beats']} beat it, "
        f"{counted['is beaten by']} are beaten by it, and for {rest} the data show no difference."
    )
    return [Finding("Baseline", text)]


def _unfinished(frame: pd.DataFrame) -> list[Finding]:
    rest = frame[frame.status != "ok"]
    listed = ", ".join(f"{row.run} ({row.status})" for _, row in rest.iterrows())
    text = f"{len(rest)} of {len(frame)} runs: {listed}."
    return [Finding("Not complete", text)] if len(rest) else []


def sentence(one: Difference) -> str:
    """Which run is better, if the data show it; without a full stop."""
    if not one.significant:
        return (
            f"the data show no difference between {one.first} and {one.second}: "
            f"{percent_points(one.value)} points of mIoU ({_interval(one)})"
        )
    better = one if one.value > 0 else one.turned()
    return (
        f"{better.first} beats {better.second} by {100 * better.value:.1f} points of mIoU "
        f"({_interval(better)})"
    )


def _interval(one: Difference) -> str:
    """In points."""
    low, high = percent_points(one.low), percent_points(one.high)
    return f"{100 * bootstrap.LEVEL:.0f} % CI {low} to {high}"


def _apart(own: Any, other: Any, pairs: Pairs) -> str:
    found = pairs.between(own.run, other.run)
    if found is not None:
        return sentence(found)
    return (
        f"{own.run} lies {percent_points(own.miou - other.miou)} points of mIoU from {other.run}, "
        "which says little without the same scenes for both"
    )


def _most(frame: pd.DataFrame) -> Any:
    """The most accurate row."""
    return frame.sort_values("miou", ascending=False, kind="stable").iloc[0]


def _point(row: Any, meter: str) -> str:
    memory = f" at {style.size(row[meter])}" if pd.notna(row[meter]) else ""
    return f"{style.percent(row.miou)} % mIoU{memory}"


def _why(entry: Entry) -> str:
    """Which classes a run never predicts, and which one it predicts too often."""
    names = [spaced(name) for name in entry.evaluation["classes"]]
    counts = matrix(entry, "test")[:-1]
    total = max(1, int(counts.sum()))
    truth, said = counts.sum(1) / total, counts.sum(0) / total
    never = [
        f"{name} ({style.percent(share)} % of the pixels)"
        for name, share, times in zip(names, truth, said, strict=True)
        if times == 0 and share > 0
    ]
    most = int(np.argmax(said - truth))
    text = f"never predicts {', '.join(never)}" if never else "predicts every class"
    if said[most] > truth[most]:
        text += (
            f"; predicts {names[most]} for {style.percent(said[most])} % of the pixels where "
            f"{style.percent(truth[most])} % are"
        )
    return text


def _distinct(values: Sequence[str]) -> str:
    counted = Counter(values)
    if len(counted) == 1:
        return values[0]
    total = len(values)
    return "; ".join(f"{value} ({n} of {total} records)" for value, n in sorted(counted.items()))
