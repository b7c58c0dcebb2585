"""Every page of a suite, as a list of sections."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pandas as pd

from bench import metrics
from bench.errors import UserError
from bench.report import (
    bootstrap,
    evaluations,
    figures,
    findings,
    memory,
    published,
    several_seeds,
    style,
    uhr_methods,
)
from bench.report import run_page as run
from bench.report import runs as all_runs
from bench.report.load_records import Entry, Inputs
from bench.report.section import Finding, Image, Link, Plot, Section, descriptions
from bench.report.site import Page, at
from data.dataset import Dataset, open_dataset

SCENES = 8
"""Test scenes that are shown of one data set; every number is of all of them."""
MEMORY = ("predicted", "paper_memory", "growth_law", "on_card", "collapsed_head", "prediction")
UHR_METHODS = ("uhr_methods", "ranking", "released", "uhr_memory", "unspecified")
"""Tables of the two pages."""
HEADINGS = {"miou": "mIoU", "miou_official": "official", "miou_stated": "as stated"}


@dataclass(frozen=True)
class DatasetPart:
    """What is known of one data set of the suite."""

    name: str
    entries: list[Entry]
    """Its runs, best first."""
    runs: pd.DataFrame
    """The table of them, in the same order."""
    findings: list[Finding]
    seeded: Section
    dataset: Dataset | None
    """None where its images are not here."""
    scenes: list[figures.thumbnails.Scene]
    """Of its first test scenes, where images and predictions are here."""
    no_images: str
    """Why no scene can be shown, or empty."""

    @property
    def credit(self) -> str:
        """Who made the data, and its limits."""
        return self.dataset.credit if self.dataset else ""

    @property
    def scene_ids(self) -> list[str]:
        """The test scenes that have pages."""
        return self.dataset.ids("test") if self.dataset and self.scenes else []


@dataclass(frozen=True)
class Content:
    """All tables of a suite and what else its pages need."""

    inputs: Inputs
    runs: pd.DataFrame
    meter: str
    """The column of the memory axis."""
    where: str
    """The device of the measurements, for an axis."""
    tables: Mapping[str, Section]
    """By name; each is written to files once."""
    parts: list[DatasetPart]

    @property
    def suite(self) -> str:
        """Its name."""
        return self.inputs.suite.suite

    def target(self, name: str) -> str:
        """The page of a run below site/; empty for what is no run of the suite."""
        known = name in self.inputs.suite.runs
        return f"{self.suite}/runs/{name}.html" if known else ""

    @property
    def links(self) -> tuple[Link, ...]:
        """The suite's pages, in the order of the navigation."""
        data = (Link(f"data: {one}", f"datasets/{one}.html") for one in self.inputs.datasets)
        pages = (
            Link(self.suite, "index.html"),
            *data,
            Link("memory", "memory.html"),
            Link("ultra-high-resolution methods", "uhr_methods.html"),
            Link("definitions and provenance", "about.html"),
        )
        return tuple(Link(one.text, f"{self.suite}/{one.target}") for one in pages)


def collect(inputs: Inputs) -> Content:
    """Work out every table of a suite."""
    entries = inputs.entries
    runs = all_runs.runs(entries)
    meter = all_runs.axis_meter(runs)
    own = {name: [one for one in entries if one.dataset == name] for name in inputs.datasets}
    compared = {name: bootstrap.compare(of) for name, of in own.items()}
    parts = [_part(name, of, runs, meter, compared[name]) for name, of in own.items()]
    tables = [
        all_runs.runs_section(runs, meter),
        all_runs.classes_section(entries),
        all_runs.ablation_section(entries, runs, meter),
        all_runs.latency_section(entries),
        all_runs.confusion_section(entries),
        all_runs.pairs_section(compared),
        published.verdict_section(entries, runs),
        published.predicted_section(inputs.predicted),
        published.explained_section(inputs.predicted),
        *memory.growth_sections(inputs.predicted),
        memory.gpu_section(inputs.gpus, inputs.predicted, inputs.uhr_methods),
        memory.collapsed_head_section(inputs.collapsed_head),
        memory.allocator_section(inputs),
        uhr_methods.runs_section(entries, runs),
        uhr_methods.ranking_section(entries),
        uhr_methods.released_section(entries),
        uhr_methods.memory_section(inputs.uhr_methods),
        uhr_methods.unspecified_section(),
        *(part.seeded for part in parts),
    ]
    where = findings.where(runs, inputs.records())
    return Content(inputs, runs, meter, where, {one.name: one for one in tables}, parts)


def drawings(content: Content) -> dict[str, figures.render.Drawing]:
    """What draws each static figure, by its name; what takes longest comes first."""
    sections = [_training(content), _accuracy(content, {}), *content.tables.values()]
    sections += [_columns(content, part) for part in content.parts]
    found = [image for one in sections for image in one.figures if isinstance(image, Image)]
    return {one.name: one.draw for one in found if one.draw}


def pages(content: Content, scenes: Mapping[str, Sequence[figures.scene_page.Page]]) -> list[Page]:
    """All pages of the suite but those of scenes, its first page first.

    Args:
        scenes: the pages of scenes by data set.
    """
    tables, suite = content.tables, content.suite
    kicker = f"suite {suite}"
    return [
        _home(content),
        *(
            Page(
                f"{suite}/datasets/{part.name}.html",
                part.name,
                _of_dataset(content, part, scenes.get(part.name, ())),
                f"{kicker} · data set",
                lead=part.credit,
            )
            for part in content.parts
        ),
        Page(
            f"{suite}/memory.html",
            "Memory",
            [tables[name] for name in MEMORY],
            kicker,
            heading="Memory, predicted, published and measured",
            lead="Memory predicted without a GPU: beside what the paper prints, over the size of an "
            "image, and beside what allocators report.",
        ),
        Page(
            f"{suite}/uhr_methods.html",
            "Ultra-high-resolution methods",
            [tables[name] for name in UHR_METHODS],
            kicker,
            lead="GLNet and the methods that followed it: the same images, split, metric and "
            "meters for all.",
        ),
        _about(content),
        *(_run(content, entry, scenes.get(entry.dataset, ())) for entry in content.inputs.entries),
    ]


def _part(
    name: str, entries: Sequence[Entry], runs: pd.DataFrame, meter: str, compared: bootstrap.Pairs
) -> DatasetPart:
    own = all_runs.by_accuracy(runs[runs.dataset == name])
    order = list(own.run)
    ordered = sorted(entries, key=lambda entry: order.index(entry.name))
    mious = {one.name: evaluations.seed_mious(one) for one in ordered}
    limits = several_seeds.ceilings(ordered)
    dataset, scenes, why = None, [], "there are no predictions here: run `dvc repro`"
    try:
        dataset = open_dataset(name)
    except UserError as error:  # numbers are worth a page without images
        why = str(error)
    if dataset and any(entry.predictions.is_dir() for entry in ordered):
        ids = dataset.ids("test")[:SCENES]
        scenes = [figures.thumbnails.scene(dataset, id, ordered) for id in ids]
    return DatasetPart(
        name=name,
        entries=ordered,
        runs=own,
        findings=findings.summary(own, meter, compared),
        seeded=several_seeds.seeds_section(name, evaluations.groups(ordered, mious), limits),
        dataset=dataset,
        scenes=scenes,
        no_images=why,
    )


def _home(content: Content) -> Page:
    tables, parts = content.tables, content.parts
    path = f"{content.suite}/index.html"
    interactive = {
        part.name: figures.interactive.accuracy_memory(
            part.name,
            part.entries,
            content.runs,
            content.meter,
            content.where,
            lambda name: at(path)(content.target(name)),
        )
        for part in parts
    }
    once = "Each model was trained once, with one seed: differences of a few points may be chance."
    seeded = [part.seeded for part in parts if part.seeded]
    several = len(parts) > 1
    of = {part.name: f": {part.name}" if several else "" for part in parts}
    return Page(
        path,
        content.suite,
        [
            *(
                Section(
                    "findings",
                    f"Findings{of[part.name]}",
                    facts=tuple(part.findings),
                    note="" if seeded else once,
                )
                for part in parts
            ),
            *seeded,
            _accuracy(content, interactive),
            *(
                replace(
                    tables["runs"],
                    title=f"All runs{of[part.name]}",
                    rows=part.runs,
                    facts=_failures(part),
                )
                for part in parts
            ),
            tables["published"],
            _training(content),
        ],
        kicker=f"suite {content.suite} · machine {content.inputs.suite.machine}",
        heading="Accuracy against memory",
        lead=descriptions()["pages"]["lead"],
    )


def _accuracy(
    content: Content, interactive: Mapping[str, figures.interactive.Interactive]
) -> Section:
    """The main figure: interactive for each data set, and static."""
    known = metrics.DEFINITIONS | findings.definitions(content.inputs.entries)
    meter = content.meter.removesuffix("_bytes")
    memory_is = (
        f"Peak memory ({meter}): {known[meter]}; {content.where}. " if meter in known else ""
    )
    plots = tuple(
        Plot(f"figure-{n}", f"mIoU against memory on {name}", one.content, one.menus, one.note)
        for n, (name, one) in enumerate(interactive.items(), 1)
    )
    static = Image(
        "accuracy_memory",
        "mIoU against peak memory, one point a run",
        "The same, static.",
        partial(figures.charts.accuracy_memory, content.runs, content.meter, content.where),
    )
    return Section(
        "figure",
        "Accuracy against peak memory",
        figures=(*plots, static),
        note="A click on a point opens its run. Strong points are on the Pareto front, faded ones "
        "are dominated. An open marker ran out of memory, at the memory of the device. Bars reach "
        f"from the lowest to the highest seed. Below the dotted line a run misses "
        f"{100 * evaluations.GATE:.0f} % of the best mIoU. mIoU: {known['miou']}. {memory_is}"
        f"Machine: {findings.machine(content.inputs.records())}.",
        links=content.links[1:-3],
    )


def _training(content: Content) -> Section:
    done = [one for one in content.inputs.trainings.values() if one and one.status == "ok"]
    phases = [phase for one in done for phase in one.values["phases"].values()]
    minutes = sum(float(phase["seconds"]) for phase in phases) / 60
    image = Image(
        "training",
        "Training loss by step, one panel a model",
        "Loss of each optimiser step (thin) and its running mean (strong). Losses of different "
        "phases sum different terms and cannot be compared. Training took "
        f"{minutes:.1f} minutes in total.",
        partial(figures.curves.training, content.inputs.trainings),
        kinds=("svg", "png"),
    )
    return Section("training", "Training", figures=(image,))


def _failures(part: DatasetPart) -> tuple[Finding, ...]:
    failed = part.runs[part.runs.status != "ok"]
    return (
        *(Finding(str(row.run), str(row.reason)) for _, row in failed.iterrows()),
        *findings.reservations(part.entries),
    )


def _columns(content: Content, part: DatasetPart) -> Section:
    """Figure 1 of the paper, at the width of a column."""
    own = content.runs[content.runs.dataset == part.name]
    return Section(
        "figures",
        "Figures at column width",
        figures=tuple(
            Image(
                f"figure1{letter}_{part.name}",
                caption,
                f"({letter}) {caption}.",
                partial(figures.charts.figure1, letter, own, content.meter, content.where),
            )
            for letter, caption in figures.charts.FIGURE1_PANELS
        ),
        note="Shape and colour both mark the network. Hollow: the whole image at once, downsampled "
        "or not; filled: patches; dark edge: patches with global context. Dotted: "
        f"{100 * evaluations.GATE:.0f} % of the best mIoU.",
    )


def _of_dataset(
    content: Content, part: DatasetPart, scenes: Sequence[figures.scene_page.Page]
) -> list[Section]:
    names = ("classes", "ablation", "latency", "pairs")
    classes, *others = (content.tables[name].of(part.name) for name in names)
    rows = all_runs.by_accuracy(classes.rows) if len(classes.rows) else classes.rows
    text, below = findings.baseline_finding(part.name, part.entries, part.runs)
    return [
        _columns(content, part),
        replace(classes, rows=rows),
        *others,
        Section("baseline", "Runs below the baseline", note=text, facts=tuple(below)),
        _thumbnails(part, scenes),
    ]


def _thumbnails(part: DatasetPart, scenes: Sequence[figures.scene_page.Page]) -> Section:
    if not part.scenes:
        return Section("scenes", "Test scenes", note=f"No images of {part.name}: {part.no_images}")
    more = len(part.scene_ids) - len(part.scenes)
    return Section(
        "scenes",
        "Test scenes",
        figures=tuple(
            Image(
                f"scenes/{one.name}",
                f"{one.name}: image, label, and the prediction and errors of each run",
                ", ".join(f"{tile.run} {tile.note}" for tile in one.tiles) + ".",
                kinds=("png",),
                legend=one.legend,
            )
            for one in part.scenes
        ),
        note="Left of each pair the prediction, right its errors over the faded image "
        f"({figures.palette.ERROR}); grey is unlabelled."
        + (f" {more} more test scenes count in every number." if more else ""),
        links=tuple(Link(one.scene, one.target) for one in scenes),
    )


def _run(content: Content, entry: Entry, scenes: Sequence[figures.scene_page.Page]) -> Page:
    row = content.runs.set_index("run", drop=False).loc[entry.name]
    answers = f" It reproduces {entry.run.published}." if entry.run.published else ""
    return Page(
        content.target(entry.name),
        f"{entry.name} · {content.suite}",
        run.run_sections(content.inputs, entry, scenes),
        kicker=f"suite {content.suite} · run",
        heading=entry.name,
        lead=f"{style.network_name(entry.network)}, trained as {entry.run.model} on "
        f"{entry.dataset}, inference strategy {entry.run.strategy}.{answers}",
        numbers=list(run.numbers(row)),
        warnings=[entry.reason] if entry.reason else [],
    )


def _about(content: Content) -> Page:
    known = (
        metrics.DEFINITIONS
        | findings.definitions(content.inputs.entries)
        | descriptions()["definitions"]
    )
    credits = (Finding(part.name, part.credit) for part in content.parts if part.credit)
    definitions = (Finding(HEADINGS.get(name, name), text) for name, text in known.items())
    facts = findings.provenance(content.inputs.records())
    return Page(
        f"{content.suite}/about.html",
        "Definitions and provenance",
        [
            Section("definitions", "Definitions", facts=tuple(definitions)),
            Section("provenance", "Provenance", facts=tuple(facts)),
            Section("data", "Data and their limits", facts=tuple(credits)),
            Section("again", "Reproduce", code=descriptions()["pages"]["reproduce"]),
        ],
        kicker=f"suite {content.suite}",
    )
