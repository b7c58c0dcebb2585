"""All that the records of one run say, and the commands that make them again."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from bench import metrics
from bench.record import Record
from bench.report import bootstrap, figures, findings, style
from bench.report.evaluations import matrix
from bench.report.load_records import Entry, Inputs
from bench.report.section import Finding, Form, Link, Plot, Section, spaced

NOT_EVALUATED = "This run has not been evaluated."


def run_sections(
    inputs: Inputs, entry: Entry, pages: Sequence[figures.scene_page.Page]
) -> list[Section]:
    """The sections of a run's page.

    Args:
        pages: of its data set's scenes.
    """
    trained = inputs.trainings.get(entry.run.model)
    records = [found for found in (trained, entry.evaluated, entry.measured) if found]
    splits = [s for s in ("test", "val") if entry.evaluation.get("splits", {}).get(s)]
    return [
        _classes(entry),
        *(_confusion(entry, split) for split in splits),
        _scenes(entry, pages),
        _training(entry, trained),
        *_memory(entry),
        _latency(entry),
        Section("settings", "Settings", facts=tuple(_flat("", _settings(entry)))),
        Section("provenance", "Provenance", facts=tuple(findings.provenance(records))),
        Section("again", "Reproduce", code="\n".join(_commands(inputs, entry, records))),
    ]


def numbers(row: Any) -> Iterator[Finding]:
    """What one wants to know first.

    Args:
        row: the run's line of the table of all runs.
    """
    known: dict[str, tuple[Any, str, Form]] = {
        "mIoU on test": (row.miou, "{} %", style.percent),
        "of the best run’s": (row.share_of_best, "{} %", style.percent),
        "latency": (row.latency_s, "{}", style.duration),
        "parameters": (row.parameters, "{}", style.count),
    }
    for meter in ("predicted", "allocated", "nvml"):  # the last that is known
        if pd.notna(row[f"{meter}_bytes"]):
            known["peak memory"] = (row[f"{meter}_bytes"], f"{{}} ({meter})", style.size)
    for what, (value, text, form) in known.items():
        if pd.notna(value):
            yield Finding(what, text.format(form(value)))


def _section(name: str, title: str, rows: Sequence[Any], show: str, **more: Any) -> Section:
    """A table without files."""
    frame = pd.DataFrame(list(rows), columns=show.split())
    return Section(name, title, rows=frame, show=show, kinds=(), **more)


def _classes(entry: Entry) -> Section:
    found = {}
    rows, plots, limits = [], [], ""
    if entry.evaluation:
        one = bootstrap.of_entry(entry)
        known = bootstrap.class_intervals(one)
        found = {k: (v.value, v.low, v.high) for k, v in known.items() if pd.notna(v.value)}
        counts = matrix(entry, "test")[:-1].sum(1)
        rows = [
            (name, *found.get(name, (None,) * 3), pixels / max(1, counts.sum()))
            for name, pixels in zip(entry.evaluation["classes"], counts, strict=True)
        ]
        limits = bootstrap.limits([one])
    if found:
        drawn = figures.curves.class_intervals(entry.evaluation["classes"], found)
        plots = [Plot("drawn-intervals", "IoU by class with 95 % CI over scenes", drawn)]
    return _section(
        "classes",
        "IoU by class",
        rows,
        "class iou low high share",
        columns={"class": ("class", spaced), "iou": ("IoU %", style.percent),
                 "share": ("of the pixels %", style.percent)},
        figures=tuple(plots),
        note=limits,
        empty=NOT_EVALUATED,
    )  # fmt: skip


def _confusion(entry: Entry, split: str) -> Section:
    """Pixels by true class (lines) and predicted class (columns), as shares of the line."""
    names = list(entry.evaluation["classes"])
    counts = matrix(entry, split)[:-1]
    rows = [
        (name, *(line / line.sum() if line.sum() else line * float("nan")), line.sum())
        for name, line in zip(names, counts, strict=True)
    ]
    frame = pd.DataFrame(rows, columns=["truth", *names, "pixels"])

    def look(name: str, row: Any) -> dict[str, Any]:
        share = row[name]
        heat = name in names and pd.notna(share)
        return {"kind": "number heat", "heat": float(share)} if heat else {}

    shares = {name: (spaced(name), style.percent) for name in names}
    return Section(
        f"confusion-{split}",
        f"Confusion matrix, {split}",
        rows=frame,
        show=" ".join(frame.columns),
        columns={
            **shares,
            "truth": ("true \\ predicted", spaced),
            "pixels": ("pixels", "{:,}".format),
        },
        look=look,
        note="Per cent of the pixels of the true class. Unlabelled pixels are left out.",
        kinds=(),
    )


def _scenes(entry: Entry, pages: Sequence[figures.scene_page.Page]) -> Section:
    values = entry.evaluation
    rows = [
        (scene, split, metrics.miou(metrics.total([found]), values["classes"], values["ignored"]))
        for split in ("test", "val")
        for scene, found in values.get("splits", {}).get(split, {}).items()
    ]
    return _section(
        "scenes",
        "mIoU by scene",
        rows,
        "scene split miou",
        links=tuple(
            Link(f"{one.scene} beside the label", one.showing("label", entry.name))
            for one in pages
            if entry.name in one.mious
        ),
        empty=NOT_EVALUATED,
    )


def _training(entry: Entry, trained: Record | None) -> Section:
    done = trained.values.get("phases", {}) if trained else {}
    rows = []
    for name, schedule in entry.model.training.phases.items():
        found = done.get(name, {})
        steps = f"{found.get('steps', style.NOTHING)} of {schedule.steps}"
        cost = found.get("parameters"), found.get("seconds")
        rows.append((name, steps, schedule.batch, schedule.learning_rate, *cost))
    drawn = figures.curves.training_curves(trained)
    return _section(
        "training",
        "Training",
        rows,
        "phase steps images_a_step learning_rate parameters took_s",
        columns={
            "learning_rate": ("learning rate", "{:g}".format),
            "parameters": ("trained parameters", style.count),
        },
        figures=(Plot("drawn-training", "Training loss by step", drawn),) if drawn else (),
        note="Loss of each optimiser step (thin) and its running mean (strong). Losses of different "
        "phases sum different terms and cannot be compared.",
        empty="There is no curve: the model is fitted in one step, or there is no record.",
    )


def _memory(entry: Entry) -> list[Section]:
    predicted = entry.meters.get("predicted", {})
    course, parts = predicted.get("course"), predicted.get("by_category", {})
    place = ", in ".join(filter(None, (predicted.get("at"), predicted.get("module"))))
    plots: tuple[Plot, ...] = ()
    if course and course["events"]:
        drawn = figures.curves.memory_timeline(course, place)
        plots = (Plot("drawn-memory", "Memory over time by category", drawn),)
    note = "".join(f"{name}: {one['definition']}. " for name, one in entry.meters.items())
    if entry.measurement:
        found = entry.measurement
        size = f"{found['height_px']} × {found['width_px']} px"
        note += f"Measured on {size}, scene {found['scene']}, device {found['device']}."
    total = sum(parts.values())
    sizes = sorted(((n, size, size / total) for n, size in parts.items() if size),
                   key=lambda part: -part[1])  # fmt: skip
    return [
        _section(
            "memory",
            "Memory",
            [
                (name, one["bytes"], " · ".join(filter(None, (one.get("at"), one.get("module")))))
                for name, one in entry.meters.items()
            ],
            "meter peak_bytes at",
            columns={"at": ("at", lambda text: text or style.NOTHING)},
            figures=plots,
            findings=lambda rows: [f"Peak at {place}."] if place else [],
            note=note,
            facts=tuple(findings.reservations([entry])),
            empty="The memory of this run has not been measured.",
        ),
        _section(
            "parts",
            "Alive at the predicted peak",
            sizes,
            "category size_bytes share",
            columns={"share": ("share %", style.percent)},
        ),
    ]


def _latency(entry: Entry) -> Section:
    found = entry.measurement
    facts = [
        Finding(text, ", ".join(style.duration(seconds) for seconds in found[f"{name}_s"]))
        for name, text in (("latency", "one prediction"), ("network", "the network alone"))
        if found.get(f"{name}_s")
    ]
    note = f"{found['latency_definition']}." if facts else ""
    return Section("latency", "Latency", facts=tuple(facts), note=note, empty="Not timed.")


def _settings(entry: Entry) -> dict[str, Any]:
    return {**asdict(entry.run), "model": {"name": entry.run.model, **asdict(entry.model)}}


def _flat(before: str, values: Mapping[str, Any]) -> Iterator[Finding]:
    """(setting, value): the lines of the suite, flat."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(f"{before}{name}.", value)
        elif value not in (None, {}, (), []):
            listed = isinstance(value, list | tuple)
            yield Finding(before + name, ", ".join(map(str, value)) if listed else str(value))


def _commands(inputs: Inputs, entry: Entry, records: Sequence[Record]) -> Iterator[str]:
    commits = {str(one.provenance.get("commit", "")) for one in records} - {""}
    if len(commits) == 1:
        yield f"git checkout {commits.pop()}  # the code that its records were made with"
    for command, what in (
        (f"cp suites/{inputs.suite.suite}.yaml params.yaml", "its suite"),
        (f"dvc repro train@{entry.run.model}", "data and training"),
        (f"python -m bench.pipeline.evaluate {entry.name}", "its labels"),
        (f"python -m bench.pipeline.measure {entry.name}", "its memory and latency"),
        (f"glnet-bench estimate {entry.name}", "its memory, without data or a GPU"),
    ):
        yield f"{command:58}  # {what}"
