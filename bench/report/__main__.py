"""Stage `report`: what the records say -> report/SUITE/ (index.html, figures, tables, metrics)."""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bench import metrics, stage
from bench.config import read_suite
from bench.errors import Refusal
from bench.files import write_bytes, write_text
from bench.report import (
    fast,
    figures,
    gate,
    growth,
    page,
    panels,
    paper,
    prediction,
    seeds,
    style,
    table,
    tradeoff,
    verdict,
    words,
)
from bench.report.gather import Entry, Inputs, gather
from data.dataset import Dataset, open_dataset

REPORT = Path("report")
SCENES = 8
"""Test scenes that are shown of one data set; every number is of all of them."""
_DESCRIPTIONS = {
    "accuracy_memory": "Scatter plot of mIoU against peak memory, one point a run",
    "growth": "Predicted memory and operations against the image's side, one line a strategy",
    "paper_memory": "Predicted and published device memory, one line a method",
    "paper_model": "Modelled against published memory, one point a row of the paper",
    "published": "Scatter plot of mIoU against memory, published and ours, one line a network",
    "training": "Training loss by step, one panel a model",
    "seeds": "mIoU of runs that differ in their seed alone, beside what cannot be passed",
}


@dataclass(frozen=True)
class Chapter:
    """What the page shows of one data set."""

    name: str
    findings: list[words.Finding]
    runs: page.Table
    failures: list[tuple[str, str]]
    """(run, reason)."""
    classes: page.Table | None
    seeded: list[seeds.Group]
    """Runs that differ in their seed alone."""
    ceilings: dict[str, float]
    mechanism: list[str]
    """What these say of GLNet."""
    seed_table: page.Table | None
    rare: list[str]
    floor: float | None
    beaten: list[words.Beaten]
    scenes: list[panels.Scene]
    more_scenes: int
    """Test scenes that are not shown."""
    no_scenes: str
    """Why no scene can be shown, or empty."""
    credit: str


def report(inputs: Inputs, folder: Path) -> Path:
    """Write the whole report of a suite; returns the page's path.

    The same records and images give the same bytes."""
    runs = table.runs(inputs.entries)
    classes = table.classes(inputs.entries)
    papers = paper.compare(inputs.predicted)
    explained = paper.explained(inputs.predicted)
    verdicts = verdict.rows(inputs.entries, runs)
    predictions = prediction.rows(inputs)
    growing = growth.points(inputs.predicted)
    slopes = growth.slopes(growing)
    meter = table.axis_meter(runs)
    where = words.where(runs, inputs.records())
    size = _paper_size(inputs)

    tables = {
        "runs": (runs, table.run_columns(), "Accuracy and cost of every run."),
        "classes": (classes, table.class_columns(classes), "IoU by class on test, per cent."),
        "predicted": (papers, _PAPER_COLUMNS, "Device memory, predicted and published."),
        "paper_memory": (explained, _EXPLAINED_COLUMNS, "What explains the published figures."),
        "prediction": (predictions, prediction.READABLE, "Memory, predicted and booked."),
        "fast": (fast.rows(inputs.fast), fast.READABLE, "GLNet, plain and collapsed."),
        "growth": (growing, {}, ""),
        "growth_law": (slopes, growth.readable(), "Growth with the number of pixels."),
        "published": (verdicts, verdict.READABLE, "Published and reproduced."),
    }
    _write_tables(folder / "tables", tables)
    numbers = json.dumps(table.metrics_json(runs), indent=1, sort_keys=True, allow_nan=False)
    write_text(folder / "metrics.json", numbers + "\n")
    chapters = [_chapter(inputs, name, runs, classes, meter) for name in inputs.datasets]
    drawings = {
        "accuracy_memory": tradeoff.accuracy_memory(runs, meter, where),
        "paper_memory": figures.paper_memory(papers, size),
        "training": figures.training(inputs.trainings),
        **({"paper_model": figures.paper_model(explained)} if len(explained) else {}),
        **({"growth": growth.figure(growing)} if len(growing) else {}),
        **({"published": figures.published(verdicts)} if _has_memory(verdicts) else {}),
        **{f"seeds_{c.name}": seeds.figure(c.seeded, c.ceilings) for c in chapters if c.seeded},
    }
    drawn: dict[str, str] = {}
    for name, figure in drawings.items():
        kinds = ("svg", "png") if name == "training" else ("svg", "png", "pdf")
        for kind, content in figures.render(figure, kinds).items():
            write_bytes(folder / "figures" / f"{name}.{kind}", content)
            if kind == "svg":
                what = "seeds" if name.startswith("seeds_") else name
                drawn[name] = page.inline(content, _DESCRIPTIONS[what])
    for chapter in chapters:
        for kind, text in _seed_files(chapter.seeded).items():
            write_text(folder / "tables" / f"seeds_{chapter.name}.{kind}", text)
        for scene in chapter.scenes:
            path = folder / "figures" / "scenes" / f"{scene.name}.png"
            write_bytes(path, panels.sheet(scene))
    text = page.render(
        suite=inputs.suite,
        chapters=chapters,
        drawn=drawn,
        meter=meter.removesuffix("_bytes"),
        where=where,
        machine=words.machine(inputs.records()),
        definitions=metrics.DEFINITIONS | words.definitions(inputs.entries),
        headings={"miou": "mIoU", "miou_official": "official", "miou_stated": "as stated"},
        papers=_paper_table(papers),
        explained=_explained_table(explained),
        model=paper.model(inputs.predicted),
        verdicts=_verdict_table(verdicts),
        predictions=_prediction_table(predictions),
        within=prediction.within(predictions),
        slopes=_slope_table(slopes),
        paper_size=size,
        heavier=bool((papers.ratio > 1).any()),
        paper_definition=inputs.predicted.values["definition"] if inputs.predicted else "",
        train_minutes=_train_seconds(inputs) / 60,
        facts=words.facts(inputs.records()),
        wrong=style.ERROR,
        gate=f"{100 * gate.SHARE:.0f} %",
    )
    write_text(folder / "index.html", text)
    return folder / "index.html"


def _chapter(
    inputs: Inputs, name: str, runs: pd.DataFrame, classes: pd.DataFrame, meter: str
) -> Chapter:
    own = table.by_accuracy(runs[runs.dataset == name])
    entries = _in_order([e for e in inputs.entries if e.model.dataset == name], list(own.run))
    counted = table.by_accuracy(classes[classes.dataset == name])
    counted = counted.dropna(axis="columns", how="all")
    rare = next((list(e.evaluation["rare"]) for e in entries if e.evaluation), [])
    seeded = seeds.groups(entries, dict(zip(own.run, own.miou, strict=True)))
    limits = seeds.ceilings(entries)
    no_scenes, credit = "", ""
    scenes: list[panels.Scene] = []
    more = 0
    try:
        dataset = open_dataset(name)
    except Refusal as refusal:  # numbers are worth a page without pictures
        no_scenes = str(refusal)
    else:
        scenes, more = _scenes(dataset, entries)
        credit = dataset.credit
    columns = table.class_columns(counted)
    return Chapter(
        name=name,
        findings=words.summary(own, meter),
        runs=page.run_table(own, table.run_columns(), meter),
        failures=[
            *((str(row.run), str(row.reason)) for _, row in own.iterrows() if row.status != "ok"),
            *words.reservations(entries),
        ],
        classes=None
        if counted.empty
        else page.heat_table(counted, columns, {n: n in rare for n in columns}),
        seeded=seeded,
        ceilings=limits,
        mechanism=seeds.sentences(seeded, limits),
        seed_table=_seed_table(seeded),
        rare=rare,
        floor=words.floor_of(own),
        beaten=words.not_above_floor(entries, own),
        scenes=scenes,
        more_scenes=more,
        no_scenes=no_scenes,
        credit=credit,
    )


_SEED_COLUMNS: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "runs": ("runs", str),
    "strategy": ("strategy", str),
    "maps are lent": ("maps are lent", str),
    "seeds": ("seeds", str),
    "mean": ("mean mIoU %", style.percent),
    "lowest": ("lowest", style.percent),
    "highest": ("highest", style.percent),
}


def _seed_table(seeded: Sequence[seeds.Group]) -> page.Table | None:
    if not seeded:
        return None
    return page.plain_table(table.for_people(seeds.table(seeded), _SEED_COLUMNS), left=3)


def _seed_files(seeded: Sequence[seeds.Group]) -> dict[str, str]:
    if not seeded:
        return {}
    raw = seeds.table(seeded)
    readable = table.for_people(raw, _SEED_COLUMNS)
    return table.files(raw, readable, "Mean and range over seeds, mIoU on test.")


def _in_order(entries: Sequence[Entry], names: Sequence[str]) -> list[Entry]:
    return sorted(entries, key=lambda entry: names.index(entry.name))


def _scenes(dataset: Dataset, entries: Sequence[Entry]) -> tuple[list[panels.Scene], int]:
    ids = dataset.ids("test")
    shown = [panels.scene(dataset, id, entries) for id in ids[:SCENES]]
    return shown, len(ids) - len(shown)


def _write_tables(
    folder: Path, tables: Mapping[str, tuple[pd.DataFrame, table.Columns, str]]
) -> None:
    """CSV, Markdown and LaTeX of each table that has a line; CSV alone where nobody reads it."""
    for name, (raw, how, caption) in tables.items():
        if raw.empty and name not in ("runs", "classes", "predicted"):
            continue
        readable = table.for_people(raw, how)
        for kind, content in table.files(raw, readable, caption).items():
            if how or kind == "csv":
                write_text(folder / f"{name}.{kind}", content)


_PAPER_COLUMNS: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "run": ("run", str),
    "published": ("published as", lambda v: style.NOTHING if pd.isna(v) else str(v)),
    "predicted_bytes": ("predicted", style.size),
    "published_bytes": ("published", style.size),
    "ratio": ("ratio", lambda v: style.NOTHING if pd.isna(v) else f"{v:.2f}"),
    "weights_bytes": ("of it weights", style.size),
    "predicted_host_bytes": ("on the host", style.size),
    "published_miou": ("published mIoU %", style.percent),
    "confidence": (
        "number",
        lambda v: {"figure": "off a plot", "exact": "printed"}.get(v, style.NOTHING),
    ),
}


_EXPLAINED_COLUMNS: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "row": ("published as", str),
    "network": ("network", str),
    "strategy": ("strategy", str),
    "input_px": ("input px", str),
    "published_mb": ("published MiB", "{:.0f}".format),
    "predicted_mb": ("tensors", "{:.0f}".format),
    "modelled_mb": ("modelled", "{:.0f}".format),
    "ratio": ("ratio", "{:.2f}".format),
    "note": ("", str),
}


def _explained_table(explained: pd.DataFrame) -> page.Table | None:
    if explained.empty:
        return None
    return page.plain_table(table.for_people(explained, _EXPLAINED_COLUMNS), left=3)


def _paper_table(papers: pd.DataFrame) -> page.Table | None:
    if papers.empty:
        return None
    return page.plain_table(table.for_people(papers, _PAPER_COLUMNS), left=2)


def _has_memory(verdicts: pd.DataFrame) -> bool:
    return bool(verdicts.published_bytes.notna().any())


def _verdict_table(verdicts: pd.DataFrame) -> page.Table | None:
    if verdicts.empty:
        return None
    return page.plain_table(table.for_people(verdicts, verdict.READABLE), left=2)


def _prediction_table(predictions: pd.DataFrame) -> page.Table | None:
    if predictions.empty:
        return None
    return page.plain_table(table.for_people(predictions, prediction.READABLE), left=2)


def _slope_table(slopes: pd.DataFrame) -> page.Table | None:
    if slopes.empty:
        return None
    return page.plain_table(table.for_people(slopes, growth.readable()), left=1)


def _paper_size(inputs: Inputs) -> tuple[int, int]:
    if inputs.predicted is None:
        return (0, 0)
    return (inputs.predicted.values["height_px"], inputs.predicted.values["width_px"])


def _train_seconds(inputs: Inputs) -> float:
    trained = [r for r in inputs.trainings.values() if r and r.status == "ok"]
    return sum(float(phase["seconds"]) for r in trained for phase in r.values["phases"].values())


def work(arguments: argparse.Namespace) -> None:
    """Write the report of the suite in params.yaml from the records that there are."""
    inputs = gather(read_suite())
    print(report(inputs, REPORT / inputs.suite.suite))


if __name__ == "__main__":
    stage.main(work)
