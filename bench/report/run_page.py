"""A run's page: all that its records say, and the command that makes them again."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from bench import metrics
from bench.record import Record
from bench.report import bootstrap, evaluations, figures, page, style, table, words
from bench.report.load_records import Entry, Inputs
from bench.report.site import Link, Site

_CLASSES: table.Columns = {
    "class": ("class", lambda name: str(name).replace("_", " ")),
    "iou": ("IoU %", style.percent),
    "low": ("from", style.percent),
    "high": ("to", style.percent),
    "share": ("of the pixels %", style.percent),
}
_METERS: table.Columns = {
    "meter": ("meter", str),
    "bytes": ("peak", style.size),
    "at": ("at", str),
}
_PARTS: table.Columns = {
    "category": ("alive at the peak", str),
    "bytes": ("size", style.size),
    "share": ("share %", style.percent),
}
_PHASES: table.Columns = {
    "phase": ("phase", str),
    "steps": ("steps", str),
    "batch": ("images a step", str),
    "learning_rate": ("learning rate", "{:g}".format),
    "parameters": ("parameters that learn", style.count),
    "seconds": ("took", style.duration),
}
_SCENES: table.Columns = {"scene": ("scene", str), "split": ("split", str),
                          "miou": ("mIoU %", style.percent)}  # fmt: skip


def address(suite: str, run: str) -> str:
    """Its path below report/."""
    return f"{suite}/runs/{run}.html"


def write(
    site: Site, inputs: Inputs, entry: Entry, row: Any, pages: Sequence[figures.scene_page.Page]
) -> Path:
    """Write SUITE/runs/RUN.html.

    Args:
        row: the run's line of `table.runs`.
        pages: of its data set's scenes.
    """
    trained = inputs.trainings.get(entry.run.model)
    intervals = _intervals(entry)
    values = entry.evaluation
    training = figures.curves.training_curves(trained)
    return site.write(
        address(inputs.suite.suite, entry.name),
        "run.html.j2",
        suite=inputs.suite,
        entry=entry,
        network=style.network_name(entry.network),
        numbers=list(_numbers(row)),
        intervals=figures.curves.class_intervals(values["classes"], intervals)
        if intervals
        else None,
        classes=page.plain_table(_classes(entry, intervals), _CLASSES, 1),
        limits=bootstrap.limits([_sample(entry)]) if values else "",
        confusion=[
            (split, page.confusion_table(evaluations.matrix(entry, split), values["classes"]))
            for split in ("test", "val")
            if values and values["splits"].get(split)
        ],
        scenes=page.plain_table(_scenes(entry), _SCENES, 2),
        looks=[
            Link(one.scene, one.showing("label", entry.name))
            for one in pages
            if entry.name in one.mious
        ],
        training=training,
        phases=page.plain_table(_phases(entry, trained), _PHASES, 1),
        meters=page.plain_table(_meters(entry), _METERS, 1),
        course=_course(entry),
        peak=_peak(entry),
        parts=page.plain_table(_parts(entry), _PARTS, 1),
        measured=entry.measurement,
        repetitions={
            name: [style.duration(seconds) for seconds in entry.measurement.get(f"{name}_s") or []]
            for name in ("latency", "network")
        },
        reasons=[entry.reason] if entry.reason else [],
        reservations=[why for _, why in words.reservations([entry])],
        settings=list(_settings(entry)),
        facts=words.facts(_records(entry, trained)),
        commands=_commands(inputs, entry, trained),
    )


def _numbers(row: Any) -> Iterator[tuple[str, str]]:
    """(what, value) of what one wants to know first."""
    if pd.notna(row.miou):
        yield "mIoU on test", f"{style.percent(row.miou)} %"
    if pd.notna(row.share_of_best):
        yield "of the best run’s", f"{style.percent(row.share_of_best)} %"
    for meter in ("nvml", "allocated", "predicted"):
        if pd.notna(row[f"{meter}_bytes"]):
            yield f"peak memory, {meter}", style.size(row[f"{meter}_bytes"])
            break
    if pd.notna(row.latency_s):
        yield "latency", style.duration(row.latency_s)
    if pd.notna(row.parameters):
        yield "parameters", style.count(row.parameters)


def _sample(entry: Entry) -> bootstrap.Sample:
    return bootstrap.sample(entry.name, entry.run.model, entry.evaluation)


def _intervals(entry: Entry) -> dict[str, tuple[float, float, float]]:
    """IoU of each class and its interval over scenes; of classes that have one."""
    if not entry.evaluation:
        return {}
    return {
        name: (found.value, found.low, found.high)
        for name, found in bootstrap.class_intervals(_sample(entry)).items()
        if pd.notna(found.value)
    }


def _classes(entry: Entry, intervals: Mapping[str, tuple[float, float, float]]) -> pd.DataFrame:
    columns = list(_CLASSES)
    if not entry.evaluation:
        return pd.DataFrame(columns=columns)
    counts = evaluations.matrix(entry, "test")[:-1].sum(1)
    names = entry.evaluation["classes"]
    nothing = (float("nan"),) * 3
    rows = [
        (name, *intervals.get(name, nothing), pixels / max(1, counts.sum()))
        for name, pixels in zip(names, counts, strict=True)
    ]
    return pd.DataFrame(rows, columns=columns)


def _scenes(entry: Entry) -> pd.DataFrame:
    values = entry.evaluation
    rows = [
        (scene, split, metrics.miou(metrics.total([found]), values["classes"], values["ignored"]))
        for split in ("test", "val")
        for scene, found in values.get("splits", {}).get(split, {}).items()
    ]
    return pd.DataFrame(rows, columns=list(_SCENES))


def _phases(entry: Entry, trained: Record | None) -> pd.DataFrame:
    done = trained.values.get("phases", {}) if trained else {}
    rows = []
    for name, schedule in entry.model.training.phases.items():
        found = done.get(name, {})
        rows.append(
            {
                "phase": name,
                "steps": f"{found.get('steps', style.NOTHING)} of {schedule.steps}",
                "batch": schedule.batch,
                "learning_rate": schedule.learning_rate,
                "parameters": found.get("parameters"),
                "seconds": found.get("seconds"),
            }
        )
    return pd.DataFrame(rows, columns=list(_PHASES))


def _meters(entry: Entry) -> pd.DataFrame:
    rows = []
    for name, meter in entry.measurement.get("meters", {}).items():
        at = " · ".join(filter(None, (meter.get("at"), meter.get("module"))))
        rows.append({"meter": name, "bytes": meter["bytes"], "at": at or style.NOTHING})
    return pd.DataFrame(rows, columns=list(_METERS))


def _predicted(entry: Entry) -> Mapping[str, Any]:
    found: Mapping[str, Any] = entry.measurement.get("meters", {}).get("predicted", {})
    return found


def _peak(entry: Entry) -> str:
    """The operator and the module at the peak that was predicted."""
    found = _predicted(entry)
    if not found:
        return ""
    place = found.get("module")
    return f"{found.get('at', 'unknown')}, in {place}" if place else str(found.get("at", ""))


def _parts(entry: Entry) -> pd.DataFrame:
    parts = _predicted(entry).get("by_category", {})
    total = sum(parts.values())
    rows = [(name, size, size / total) for name, size in parts.items() if size]
    rows.sort(key=lambda part: -part[1])
    return pd.DataFrame(rows, columns=list(_PARTS))


def _course(entry: Entry) -> figures.plotly_layout.Figure | None:
    course = _predicted(entry).get("course")
    return (
        figures.curves.memory_timeline(course, _peak(entry))
        if course and course["events"]
        else None
    )


def _settings(entry: Entry) -> Iterator[tuple[str, str]]:
    """(setting, value): the lines of the suite, flat."""
    yield from _flat("", asdict(entry.run))
    yield from _flat("model.", asdict(entry.model))


def _flat(before: str, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(f"{before}{name}.", value)
        elif value not in (None, {}, (), []):
            listed = isinstance(value, list | tuple)
            yield before + name, ", ".join(map(str, value)) if listed else str(value)


def _records(entry: Entry, trained: Record | None) -> list[Record]:
    return [found for found in (trained, entry.evaluated, entry.measured) if found]


def _commands(inputs: Inputs, entry: Entry, trained: Record | None) -> list[tuple[str, str]]:
    """(command, what it does)."""
    commits = {str(r.provenance.get("commit", "")) for r in _records(entry, trained)} - {""}
    suite = inputs.suite.suite
    found = []
    if len(commits) == 1:
        found.append((f"git checkout {commits.pop()}", "the code that its records were made with"))
    found.append((f"cp suites/{suite}.yaml params.yaml", "its suite"))
    found.append((f"dvc repro train@{entry.run.model}", "data and training"))
    found.append((f"python -m bench.pipeline.evaluate {entry.name}", "its labels"))
    found.append((f"python -m bench.pipeline.measure {entry.name}", "its memory and latency"))
    found.append((f"glnet-bench estimate {entry.name}", "its memory, without data or a device"))
    return found
