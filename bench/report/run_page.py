"""All that the records of one run say, and the commands that make them again."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple
from typing import Any

import pandas as pd

from bench.report import bootstrap, figures, findings, style
from bench.report.evaluations import confusion, matrix, scene_miou
from bench.report.load_records import Entry, Inputs
from bench.report.section import Finding, Link, Plot, Section, section
from bench.report.section import findings as worked_out


def run_sections(
    inputs: Inputs, entry: Entry, pages: Sequence[figures.scenes.Page]
) -> list[Section]:
    """The sections of a run's page.

    Args:
        pages: of its data set's scenes.
    """
    training = inputs.trainings.get(entry.run.model)
    records = [found for found in (training, entry.evaluated, entry.measured) if found]
    commits = {one.provenance.get("commit") or "" for one in records} - {""}
    commit = commits.pop() if len(commits) == 1 else ""
    splits = [s for s in ("test", "val") if entry.evaluation.get("splits", {}).get(s)]
    settings = {**asdict(entry.run), "model": {"name": entry.run.model, **asdict(entry.model)}}
    return [
        _classes(entry),
        *(_confusion(entry, split) for split in splits),
        _scenes(entry, splits, pages),
        _training(entry, training.values if training else {}),
        *_memory(entry),
        _latency(entry),
        section("run/settings", facts=list(_flat("", settings))),
        section("provenance", facts=findings.provenance(records)),
        section("run/again", fill={"suite": inputs.suite.suite, "entry": entry, "commit": commit}),
    ]


def _classes(entry: Entry) -> Section:
    if not entry.evaluation:
        return section("run/classes", fill={"limits": ""})
    one, names = bootstrap.of_entry(entry), entry.evaluation["classes"]
    intervals = bootstrap.class_intervals(one).items()
    found = {name: astuple(each) for name, each in intervals if pd.notna(each.value)}
    counts = matrix(entry, "test")[:-1].sum(1)
    shares = counts / max(1, counts.sum())
    unknown = (None, None, None)
    drawn = figures.charts.class_intervals(names, found) if found else {}
    plot = Plot("drawn-intervals", "IoU by class with 95 % CI over scenes", drawn)
    return section(
        "run/classes",
        [(n, *found.get(n, unknown), share) for n, share in zip(names, shares, strict=True)],
        figures=(plot,) if found else (),
        fill={"limits": findings.limits([one])},
    )


def _confusion(entry: Entry, split: str) -> Section:
    """Pixels by true class (lines) and predicted class (columns), as shares of the line."""
    frame, names = confusion(entry, split), entry.evaluation["classes"]
    frame = frame.assign(truth=names, pixels=matrix(entry, split)[:-1].sum(1))
    columns = {
        "truth": ("true \\ predicted", "spaced"),
        **{name: (style.spaced(name), "percent") for name in names},
        "pixels": ("pixels", "commas"),
    }
    return section("run/confusion", frame, columns, fill={"split": split}, heat=names, grid=True)


def _scenes(entry: Entry, splits: Sequence[str], pages: Sequence[figures.scenes.Page]) -> Section:
    scenes = [(one, split) for split in splits for one in entry.evaluation["splits"][split]]
    rows = [(scene, split, scene_miou(entry, scene, split)) for scene, split in scenes]
    links = [
        Link(f"{one.scene} beside the label", one.showing("label", entry.name))
        for one in pages
        if entry.name in one.mious
    ]
    return section("run/scenes", rows, links=links)


def _training(entry: Entry, trained: Mapping[str, Any]) -> Section:
    done = trained.get("phases", {})
    rows = []
    for name, schedule in entry.model.training.phases.items():
        found = done.get(name, {})
        steps = f"{found.get('steps', style.NOTHING)} of {schedule.steps}"
        cost = found.get("parameters"), found.get("seconds")
        rows.append((name, steps, schedule.batch, schedule.learning_rate, *cost))
    drawn = figures.curves.training_curves(trained)
    plots = (Plot("drawn-training", "Training loss by step", drawn),) if drawn else ()
    return section("run/training", rows, figures=plots)


def _memory(entry: Entry) -> list[Section]:
    predicted = entry.meters.get("predicted", {})
    timeline, parts = predicted.get("timeline"), predicted.get("by_category", {})
    place = ", in ".join(filter(None, (predicted.get("at"), predicted.get("module"))))
    plots: tuple[Plot, ...] = ()
    if timeline and timeline["events"]:
        drawn = figures.curves.memory_timeline(timeline, place)
        plots = (Plot("drawn-memory", "Memory over time by category", drawn),)
    meters = [
        (
            style.FORMS["meter"](name),
            one["bytes"],
            " · ".join(filter(None, (one.get("at"), one.get("module")))),
        )
        for name, one in entry.meters.items()
    ]
    sizes = sorted(((size, name) for name, size in parts.items() if size), key=lambda one: -one[0])
    total = sum(parts.values())
    return [
        section(
            "run/memory",
            meters,
            figures=plots,
            findings=[f"Peak at {place}."] if place else (),
            facts=findings.reservations([entry]),
            fill={"entry": entry},
        ),
        section("run/parts", [(name, size, size / total) for size, name in sizes]),
    ]


def _latency(entry: Entry) -> Section:
    facts = worked_out("timed", **{"latency_s": [], "network_s": [], **entry.measurement})
    timed = entry.measurement["latency_definition"] if facts else ""
    return section("run/latency", fill={"timed": timed}, facts=facts)


def _flat(before: str, values: Mapping[str, Any]) -> Iterator[Finding]:
    """(setting, value): the lines of the suite, flat."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(f"{before}{name}.", value)
        elif value not in (None, {}, (), []):
            listed = isinstance(value, list | tuple)
            yield Finding(before + name, ", ".join(map(str, value)) if listed else str(value))
