"""Stage `report`: what the records say -> the site of a suite below report/, with its figures,
tables and metrics, and the page above all suites."""

import argparse
import json
import webbrowser
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from bench import cli, metrics
from bench.config import read_suite
from bench.files import write_bytes, write_text
from bench.report import (
    ablation,
    fast,
    figures,
    growth,
    memory_page,
    on_card,
    overview,
    page,
    pairs,
    paper,
    prediction,
    quality_gate,
    run_page,
    seeds,
    successors_page,
    table,
    timing,
    verdict,
    words,
)
from bench.report.chapter import Chapter, Frames, chapter
from bench.report.load_records import Inputs, load_records
from bench.report.memory_page import Worked
from bench.report.site import Link, Site, at, forget, write_assets
from bench.report.successors_page import Compared
from data.dataset import open_dataset

REPORT = Path("report")


def report(inputs: Inputs, folder: Path = REPORT) -> Path:
    """Write the whole report of a suite; returns its first page.

    The same records and images give the same bytes.

    Args:
        folder: of the site; the suite has one of its own name in it.
    """
    suite = inputs.suite.suite
    runs = table.runs(inputs.entries)
    meter = table.axis_meter(runs)
    frames = Frames(
        runs=runs,
        classes=table.classes(inputs.entries),
        confusion=table.confusions(inputs.entries),
        ablation=ablation.rows(inputs.entries, runs, meter),
        timing=timing.rows(inputs.entries),
        verdicts=verdict.rows(inputs.entries, runs),
        paired={
            name: pairs.gathered([one for one in inputs.entries if one.model.dataset == name])
            for name in inputs.datasets
        },
    )
    worked = memory_page.worked(inputs)
    compared = successors_page.compared(inputs)
    target = partial(run_page.address, suite)
    chapters = [chapter(inputs, name, frames, meter, target) for name in inputs.datasets]
    drawn = folder / suite / "figures"
    with figures.render.written(_figures(inputs, frames, worked, chapters, meter), drawn):
        _write_sheets(drawn / "scenes", chapters)
        _write_tables(folder / suite / "tables", frames, worked, compared, chapters)
        numbers = json.dumps(table.metrics_json(runs), indent=1, allow_nan=False)
        write_text(folder / suite / "metrics.json", numbers + "\n")
        overview.summarise(folder / suite / overview.SUMMARY, inputs.suite, chapters)
        write_assets(folder)
        first = _write_pages(folder, inputs, frames, worked, compared, chapters, meter)
        overview.write(folder)
    return first


def _write_pages(
    folder: Path,
    inputs: Inputs,
    frames: Frames,
    worked: Worked,
    compared: Compared,
    chapters: Sequence[Chapter],
    meter: str,
) -> Path:
    """Every page of the suite; returns its first."""
    suite = inputs.suite.suite
    site = Site(folder, suite, _links(suite, chapters))
    target = partial(run_page.address, suite)
    where = words.where(frames.runs, inputs.records())
    shared = {
        "suite": inputs.suite,
        "folder": suite,
        "chapters": chapters,
        "meter": meter.removesuffix("_bytes"),
        "where": where,
        "machine": words.machine(inputs.records()),
        "definitions": metrics.DEFINITIONS | words.definitions(inputs.entries),
        "gate": f"{100 * quality_gate.SHARE:.0f} %",
        "panels": figures.charts.FIGURE1_PANELS,
    }
    home = f"{suite}/index.html"
    first = site.write(
        home,
        "suite.html.j2",
        **shared,
        interactive={
            one.name: figures.interactive.accuracy_memory(
                one.name, one.entries, frames.runs, meter, where, lambda run: at(home)(target(run))
            )
            for one in chapters
        },
        verdicts=page.plain_table(frames.verdicts, verdict.READABLE, 2, target),
        published_is_drawn=_has_memory(frames.verdicts),
        train_minutes=_train_seconds(inputs) / 60,
    )
    scenes = {one.name: _scene_pages(site, inputs, one) for one in chapters}
    datasets = [
        site.write(
            f"{suite}/datasets/{one.name}.html",
            "dataset.html.j2",
            **shared,
            chapter=one,
            scenes=scenes[one.name],
            wrong=figures.palette.ERROR,
        )
        for one in chapters
    ]
    rows = frames.runs.set_index("run", drop=False)
    runs = [
        run_page.write(site, inputs, entry, rows.loc[entry.name], scenes[entry.model.dataset])
        for entry in inputs.entries
    ]
    own = {entry.name for entry in inputs.entries}

    def there(run: str) -> str:
        return target(run) if run in own else ""

    memory_page.write(site, inputs, worked, there, shared)
    successors_page.write(site, inputs, compared, there, shared)
    site.write(
        f"{suite}/about.html",
        "about.html.j2",
        **shared,
        headings={"miou": "mIoU", "miou_official": "official", "miou_stated": "as stated"},
        facts=words.facts(inputs.records()),
    )
    forget(folder / suite / "datasets", datasets)
    forget(folder / suite / "runs", runs)
    forget(folder / suite / "scenes", [one.path for pages in scenes.values() for one in pages])
    return first


def _scene_pages(site: Site, inputs: Inputs, chapter: Chapter) -> list[figures.scene_page.Page]:
    """Pages of all test scenes of a data set, where its images are here."""
    if chapter.no_scenes:
        return []
    dataset = open_dataset(chapter.name)
    return figures.scene_page.write(site, inputs, dataset, dataset.ids("test"))


def _links(suite: str, chapters: Sequence[Chapter]) -> tuple[Link, ...]:
    return (
        Link(suite, f"{suite}/index.html"),
        *(Link(f"data: {one.name}", f"{suite}/datasets/{one.name}.html") for one in chapters),
        Link("memory", f"{suite}/memory.html"),
        Link("successors", f"{suite}/successors.html"),
        Link("definitions and provenance", f"{suite}/about.html"),
    )


def _figures(
    inputs: Inputs,
    frames: Frames,
    worked: Worked,
    chapters: Sequence[Chapter],
    meter: str,
) -> dict[str, figures.render.Drawing]:
    """What draws each static figure, by its name; what takes longest comes first."""
    runs, where = frames.runs, words.where(frames.runs, inputs.records())
    size = memory_page.paper_size(inputs)
    drawn: dict[str, figures.render.Drawing] = {
        "training": partial(figures.curves.training, inputs.trainings),
        "accuracy_memory": partial(figures.charts.accuracy_memory, runs, meter, where),
        "paper_memory": partial(figures.charts.paper_memory, worked.papers, size),
    }
    if len(worked.on_card):
        drawn["on_card"] = partial(figures.charts.on_gpu, worked.on_card)
    if len(worked.growing):
        drawn["growth"] = partial(figures.curves.growth, worked.growing)
    if len(worked.explained):
        drawn["paper_model"] = partial(figures.charts.paper_model, worked.explained)
    if _has_memory(frames.verdicts):
        drawn["published"] = partial(figures.charts.published, frames.verdicts)
    for one in chapters:
        own = runs[runs.dataset == one.name]
        for letter, _ in figures.charts.FIGURE1_PANELS:
            drawn[f"figure1{letter}_{one.name}"] = partial(
                figures.charts.figure1, letter, own, meter, where
            )
        if one.seeded:
            drawn[f"seeds_{one.name}"] = partial(figures.curves.seeds, one.seeded, one.ceilings)
    return drawn


def _write_sheets(folder: Path, chapters: Sequence[Chapter]) -> None:
    """Each scene that is shown, with what every run makes of it."""
    for one in chapters:
        for scene in one.scenes:
            write_bytes(folder / f"{scene.name}.png", figures.thumbnails.sheet(scene))


def _write_tables(
    folder: Path,
    frames: Frames,
    worked: Worked,
    compared: Compared,
    chapters: Sequence[Chapter],
) -> None:
    """CSV, Markdown and LaTeX of each table that has a line; CSV alone where nobody reads it."""
    class_columns = table.class_columns(frames.classes)
    tables: Mapping[str, tuple[pd.DataFrame, table.Columns, str]] = {
        "runs": (frames.runs, table.run_columns(), "Accuracy and cost of every run."),
        "classes": (frames.classes, class_columns, "IoU by class on test, per cent."),
        "ablation": (frames.ablation, ablation.READABLE, "What one setting changes."),
        "latency": (frames.timing, timing.READABLE, "Latency of one prediction."),
        "predicted": (worked.papers, paper.READABLE, "Device memory, predicted and published."),
        "paper_memory": (
            worked.explained,
            paper.EXPLAINED_READABLE,
            "What explains the published figures.",
        ),
        "prediction": (worked.predictions, prediction.READABLE, "Memory, predicted and booked."),
        "on_card": (worked.on_card, on_card.READABLE, "Published settings on a card."),
        "fast": (worked.fast, fast.READABLE, "GLNet, plain and collapsed."),
        "growth": (worked.growing, {}, ""),
        "growth_law": (worked.slopes, growth.readable(), "Growth with the number of pixels."),
        "published": (frames.verdicts, verdict.READABLE, "Published and reproduced."),
        "confusion": (frames.confusion, {}, ""),
        "pairs": (
            pd.concat([pairs.table(name, found) for name, found in frames.paired.items()]),
            pairs.READABLE,
            pairs.CAPTION,
        ),
        **compared.files(),
        **{
            f"seeds_{one.name}": (
                seeds.table(one.seeded),
                seeds.READABLE,
                "Mean and range over seeds, mIoU on test.",
            )
            for one in chapters
            if one.seeded
        },
    }
    for name, (raw, how, caption) in tables.items():
        if raw.empty and name not in ("runs", "classes", "predicted"):
            continue
        readable = table.for_people(raw, how)
        for kind, content in table.files(raw, readable, caption).items():
            if how or kind == "csv":
                write_text(folder / f"{name}.{kind}", content)


def _has_memory(verdicts: pd.DataFrame) -> bool:
    return bool(verdicts.published_bytes.notna().any())


def _train_seconds(inputs: Inputs) -> float:
    trained = [r for r in inputs.trainings.values() if r and r.status == "ok"]
    return sum(float(phase["seconds"]) for r in trained for phase in r.values["phases"].values())


def work(arguments: argparse.Namespace) -> None:
    """Write the report of a suite from the records that there are."""
    path = report(load_records(read_suite(arguments.suite)))
    print(path)
    if arguments.open:
        webbrowser.open(path.resolve().as_uri())


if __name__ == "__main__":
    cli.main(work, cli.add_report_arguments)
