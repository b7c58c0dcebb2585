"""What the numbers say, in sentences that are worked out from them; a negative result is said as
plainly as a positive one. The sentences themselves are in sections.yaml."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bench import metrics
from bench.report import bootstrap, evaluations, section
from bench.report.bootstrap import Pairs, Sample
from bench.report.evaluations import Group
from bench.report.load_records import BASELINE, Entry, Record
from bench.report.section import Finding, descriptions, sentences
from bench.report.style import percent, size, spaced

CHANCE = 0.02
"""mIoU by which two trainings of one model may well differ."""


def summary(frame: pd.DataFrame, meter: str, pairs: Pairs) -> list[Finding]:
    """What one data set's runs say; the verdict on GLNet first. One run beats another only where
    the interval of their difference says so.

    Args:
        frame: `runs` of one data set.
        meter: the column of memory.
        pairs: of the same runs.
    """
    evaluated = frame[frame.miou.notna()]
    trained = evaluated[evaluated.network != BASELINE]
    if trained.empty:
        return [Finding("No result yet", "No trained run has been evaluated: run `dvc repro`.")]
    ranked = trained[trained.excluded.isna()]
    baseline, best = evaluations.baseline_miou(frame), _most(trained)
    differences = [
        (run, pairs.between(best.run, run)) for run in evaluations.by_accuracy(ranked).run
    ]
    passed = ranked.share_of_best >= evaluations.GATE
    useful = ranked[passed & ranked[meter].notna()]
    cheapest = useful.sort_values(meter, kind="stable").iloc[:1]
    own = evaluated.run[evaluated.network == BASELINE]
    against = [pairs.between(run, own.iloc[0]) for run in trained.run if len(own)]
    verdicts = [one.verdict for one in against if one]
    return section.findings(
        "summary",
        **_glnet(trained, meter, baseline, pairs),
        best=_point(best, meter),
        near=[run for run, one in differences if one and not one.significant],
        least=" ".join(_point(row, meter) for _, row in cheapest.iterrows()),
        gate=evaluations.GATE,
        missed=ranked.run[~passed].tolist(),
        ranked=len(ranked),
        excluded=trained.run[trained.excluded.notna()].tolist(),
        trained=len(trained),
        baseline=baseline,
        beat=verdicts.count("beats"),
        beaten=verdicts.count("is beaten by"),
        limits=limits(pairs.samples),
        unfinished=frame[frame.status != "ok"].to_dict("records"),
        runs=len(frame),
    )


def lead(frame: pd.DataFrame, meter: str, pairs: Pairs) -> str:
    """GLNet's best run against the best rival, in a sentence.

    Args:
        frame: `evaluations.seeds_as_one` of one data set.
    """
    known = frame[frame.miou.notna() & (frame.network != BASELINE)]
    own, _, found, cost = _against_best(known, meter, pairs)
    return sentences("lead", own=own is not None and own.run, found=found, cost=cost)[0]


def _against_best(trained: pd.DataFrame, meter: str, pairs: Pairs) -> tuple[Any, Any, Any, str]:
    """GLNet's best run, the best rival, their difference, and the ratio of their memory in digits; None
    and an empty text for what is not known."""
    ours, rivals = trained[trained.network == "glnet"], trained[trained.network != "glnet"]
    own, rival = (_most(one) if len(one) else None for one in (ours, rivals))
    if own is None or rival is None:
        return own, rival, None, ""
    ratio = (
        float(own[meter]) / float(rival[meter]) if pd.notna([own[meter], rival[meter]]).all() else 0
    )
    return own, rival, pairs.between(own.run, rival.run), f"{ratio:.2g}" if ratio else ""


def tiles(frame: pd.DataFrame, meter: str) -> list[Finding]:
    """The most accurate run, the one of least memory among those that pass the gate, and GLNet's
    best.

    Args:
        frame: `evaluations.seeds_as_one` of one data set.
    """
    known = evaluations.by_accuracy(frame[frame.miou.notna() & (frame.network != BASELINE)])
    gate = known[known.excluded.isna() & (known.miou >= evaluations.GATE * known.miou.max())]
    found = {
        "best": known[:1],
        "least memory": gate.dropna(subset=[meter]).sort_values(meter, kind="stable")[:1],
        "GLNet": known[known.network == "glnet"][:1],
    }
    return [
        Finding(f"{what}: {row.run}", _point(row, meter).partition(": ")[2])
        for what, rows in found.items()
        for _, row in rows.iterrows()
    ]


def _glnet(
    trained: pd.DataFrame, meter: str, baseline: float | None, pairs: Pairs
) -> dict[str, Any]:
    """GLNet against its rivals, on accuracy, on the front, and against its own branches."""
    said: dict[str, Any] = dict.fromkeys(("own", "wins", "cost", "on_front", "pays", "joined"))
    own, rival, won, cost = _against_best(trained, meter, pairs)
    if own is None or rival is None:
        return said
    choices, ours = evaluations.front(trained, meter, baseline), trained[trained.network == "glnet"]
    said |= {
        "own": _apart(own, rival, pairs),
        "wins": "wins" if won and won.low > 0 else "does not win",
        "cost": cost,
        "on_front": [run for run in ours.run if run in choices],
    }
    together = ours[ours.strategy.isin(["global-to-local", "collaborative"])]
    alone = ours[ours.strategy.isin(evaluations.ONE_VIEW)]
    if len(together) and len(alone):
        both, single = _most(together), _most(alone)
        gain = pairs.between(both.run, single.run)
        said |= {"joined": _apart(both, single, pairs), "pays": "makes no significant difference"}
        if gain and gain.significant:
            said["pays"] = "pays" if gain.value > 0 else "costs accuracy"
    return said


def baseline_finding(
    name: str, entries: Sequence[Entry], frame: pd.DataFrame
) -> tuple[dict[str, Any], list[Finding]]:
    """Trained runs of one data set whose test mIoU is not above the baseline's, worst first, and
    what their confusion matrices say about it: values for a text, and a line a run."""
    least, miou = evaluations.baseline_miou(frame), frame.set_index("run").miou
    trained = [one for one in entries if one.evaluation and one.network != BASELINE]
    lost = [one for one in trained if least is not None and miou[one.name] <= least]
    below = sorted(lost, key=lambda entry: float(miou[entry.name]))
    lines = [Finding(entry.name, _why(entry, miou[entry.name])) for entry in below]
    return {"least": least, "below": below, "dataset": name}, lines


def limits(samples: Collection[Sample]) -> str:
    """What the intervals of these runs mean, and what they do not cover; empty without a run."""
    if not samples:
        return ""
    said = sentences(
        "limits",
        level=bootstrap.LEVEL,
        draws=f"{bootstrap.DRAWS:,}",
        scenes=sorted({len(one.scenes) for one in samples}),
        few=bootstrap.FEW_SCENES,
        seeds=sorted({len(one.matrices) for one in samples}),
    )
    return " ".join(said)


def seed_sentences(found: Sequence[Group], ceilings: Mapping[str, float]) -> list[str]:
    """What groups of seeds say of GLNet's mechanism.

    Args:
        ceilings: mIoU 0..1 that cannot be passed, by what limits it.
    """
    own = [group for group in found if group.network == "glnet"]
    single = [group for group in own if group.strategy in evaluations.ONE_VIEW]
    both = [
        group
        for group in own
        if group.strategy not in evaluations.ONE_VIEW and group.feature_sharing
    ]
    said = []
    for group in both:
        passed = [name for name, limit in ceilings.items() if group.mean > limit]
        said += sentences("several_seeds", group=group, single=single, passed=passed)
    for group in both:
        for other in own:
            if other.strategy == group.strategy and not other.feature_sharing:
                gain = group.mean - other.mean
                values = {"group": group, "other": other, "gain": gain, "chance": CHANCE}
                said += sentences("feature_sharing", **values)
    return said


def reservations(entries: Sequence[Entry]) -> list[Finding]:
    """What is out of date of a run, and what its measurement could not see, or not for certain."""
    found = [Finding(entry.name, entry.outdated) for entry in entries if entry.outdated]
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
    named = {
        f"{fact.get('machine', 'unnamed')} ({fact.get('processor', 'processor unknown')}, "
        f"{fact.get('cores', '?')} cores, {fact.get('threads', '?')} threads)"
        for fact in (record.provenance for record in records if record.stage == "measure")
    }
    return "; ".join(sorted(named)) or "no machine yet"


def definitions(entries: Sequence[Entry]) -> dict[str, str]:
    """Column -> its definition: of metrics, of each meter and `latency` as the records say them, and
    what runs state of their own mIoU."""
    own = [
        metrics.describe(**evaluations.stated(e)) for e in entries if e.run.metric and e.evaluation
    ]
    found = {**metrics.DEFINITIONS, **({"miou_stated": _distinct(own)} if own else {})}
    for entry in entries:
        for name, meter in entry.meters.items():
            found.setdefault(name, meter["definition"])
        for key, name in (("latency", "latency"), ("network", "network alone")):
            if f"{key}_definition" in entry.measurement:
                found.setdefault(name, entry.measurement[f"{key}_definition"])
    return found


def provenance(records: Iterable[Record]) -> list[Finding]:
    """What the records' provenances say; where they disagree, every value and how often."""
    facts = descriptions()["facts"]
    known: dict[str, list[str]] = {}
    for found in (record.provenance for record in records):
        own = {name: found[key] for key, name in facts.items() if key in found}
        for name, value in {**own, **found.get("versions", {})}.items():
            words = {None: "unknown", False: "no", True: "yes"}
            text = words[value] if isinstance(value, bool | None) else str(value)
            known.setdefault(name, []).append(text)
    names = [name for name in facts.values() if name in known]
    names += sorted(known.keys() - facts.values())
    return [Finding(name, _distinct(known[name])) for name in names]


def _apart(own: Any, other: Any, pairs: Pairs) -> str:
    """Which of two runs is better, if the data show it; without a full stop."""
    found = pairs.between(own.run, other.run)
    if found is None:
        return sentences("no_difference", own=own, other=other)[0]
    better = found.turned() if found.verdict == "is beaten by" else found
    return sentences("difference", one=better, level=bootstrap.LEVEL)[0]


def _most(frame: pd.DataFrame) -> Any:
    """The most accurate row."""
    return evaluations.by_accuracy(frame).iloc[0]


def _point(row: Any, meter: str) -> str:
    memory = f" at {size(row[meter])}" if pd.notna(row[meter]) else ""
    return f"{row.run}: {percent(row.miou)} % mIoU{memory}"


def _why(entry: Entry, miou: float) -> str:
    """Which classes a run never predicts, and which one it predicts too often."""
    names = [spaced(name) for name in entry.evaluation["classes"]]
    counts = evaluations.matrix(entry, "test")[:-1]
    truth, said = (counts.sum(axis) / max(1, int(counts.sum())) for axis in (1, 0))
    most = int(np.argmax(said - truth))
    return sentences(
        "below_baseline",
        miou=miou,
        never=[(names[k], truth[k]) for k in np.flatnonzero((said == 0) & (truth > 0))],
        most=names[most],
        said=said[most],
        truth=truth[most],
    )[0]


def _distinct(values: Sequence[str]) -> str:
    counted = Counter(values)
    if len(counted) == 1:
        return values[0]
    total = len(values)
    return "; ".join(f"{value} ({n} of {total} records)" for value, n in sorted(counted.items()))
