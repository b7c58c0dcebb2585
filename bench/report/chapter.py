"""What the site shows of one data set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from bench.errors import UserError
from bench.report import (
    ablation,
    bootstrap,
    evaluations,
    figures,
    page,
    pairs,
    quality_gate,
    seeds,
    table,
    timing,
    words,
)
from bench.report.load_records import Entry, Inputs
from bench.report.site import Target
from data.dataset import Dataset, open_dataset

SCENES = 8
"""Test scenes that are shown of one data set; every number is of all of them."""


@dataclass(frozen=True)
class Chapter:
    """What the pages show of one data set."""

    name: str
    entries: list[Entry]
    """Its runs, best first."""
    findings: list[words.Finding]
    runs: page.Table
    failures: list[tuple[str, str]]
    """(run, reason)."""
    classes: page.Table | None
    ablation: page.Table | None
    timing: page.Table | None
    compared: page.Table | None
    """Every two runs."""
    limits: str
    """What intervals mean here, and what they cannot say."""
    seeded: list[seeds.Group]
    """Runs that differ in their seed alone."""
    ceilings: dict[str, float]
    mechanism: list[str]
    """What these say of GLNet."""
    seed_table: page.Table | None
    rare: list[str]
    floor: float | None
    beaten: list[words.Beaten]
    scenes: list[figures.thumbnails.Scene]
    more_scenes: int
    """Test scenes that are not shown."""
    no_scenes: str
    """Why no scene can be shown, or empty."""
    credit: str


@dataclass(frozen=True)
class Frames:
    """Tables of all data sets, in raw values."""

    runs: pd.DataFrame
    """`table.runs`."""
    classes: pd.DataFrame
    """`table.classes`."""
    confusion: pd.DataFrame
    """`table.confusions`."""
    ablation: pd.DataFrame
    """`ablation.rows`."""
    timing: pd.DataFrame
    """`timing.rows`."""
    verdicts: pd.DataFrame
    """`verdict.rows`."""
    paired: Mapping[str, pairs.Pairs]
    """Every two runs of each data set."""


def chapter(inputs: Inputs, name: str, frames: Frames, meter: str, target: Target) -> Chapter:
    """Gather one data set's part of the tables, its findings and its scenes.

    Args:
        meter: the column of memory.
        target: a run's page below report/.
    """
    paired = frames.paired[name]
    own = table.by_accuracy(frames.runs[frames.runs.dataset == name])
    entries = _in_order([e for e in inputs.entries if e.model.dataset == name], list(own.run))
    counted = table.by_accuracy(frames.classes[frames.classes.dataset == name])
    counted = counted.dropna(axis="columns", how="all")
    rare = next((list(e.evaluation["rare"]) for e in entries if e.evaluation), [])
    seeded = seeds.groups(entries, {one.name: evaluations.seed_mious(one) for one in entries})
    limits = seeds.ceilings(entries)
    no_scenes, credit = "", ""
    scenes: list[figures.thumbnails.Scene] = []
    more = 0
    try:
        dataset = open_dataset(name)
    except UserError as refusal:  # numbers are worth a page without pictures
        no_scenes = str(refusal)
    else:
        scenes, more = _scenes(dataset, entries)
        credit = dataset.credit
    columns = table.class_columns(counted)
    ablated = frames.ablation[frames.ablation.dataset == name]
    timed = frames.timing[frames.timing.dataset == name]
    return Chapter(
        name=name,
        entries=entries,
        findings=words.summary(own, meter, paired),
        runs=page.run_table(own, table.run_columns(), meter, target),
        failures=[
            *((str(row.run), str(row.reason)) for _, row in own.iterrows() if row.status != "ok"),
            *words.reservations(entries),
        ],
        classes=None if counted.empty else page.heat_table(counted, columns, rare, target),
        ablation=page.plain_table(ablated, ablation.READABLE, 3, target),
        timing=page.plain_table(timed, timing.READABLE, 2, target),
        compared=page.plain_table(pairs.table(name, paired), pairs.READABLE, 2, target),
        limits=bootstrap.limits(paired.samples),
        seeded=seeded,
        ceilings=limits,
        mechanism=seeds.sentences(seeded, limits),
        seed_table=page.plain_table(seeds.table(seeded), seeds.READABLE, 3),
        rare=rare,
        floor=quality_gate.baseline_miou(own),
        beaten=words.not_above_floor(entries, own),
        scenes=scenes,
        more_scenes=more,
        no_scenes=no_scenes,
        credit=credit,
    )


def _in_order(entries: Sequence[Entry], names: Sequence[str]) -> list[Entry]:
    return sorted(entries, key=lambda entry: names.index(entry.name))


def _scenes(
    dataset: Dataset, entries: Sequence[Entry]
) -> tuple[list[figures.thumbnails.Scene], int]:
    ids = dataset.ids("test")
    shown = [figures.thumbnails.scene(dataset, id, entries) for id in ids[:SCENES]]
    return shown, len(ids) - len(shown)
