"""Every page of a suite, as a list of sections."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pandas as pd

from bench.errors import UserError
from bench.report import (
    bootstrap,
    evaluations,
    figures,
    findings,
    memory,
    published,
    run_page,
    style,
)
from bench.report import runs as all_runs
from bench.report.load_records import BENCHMARK, Entry, Inputs
from bench.report.section import Finding, Image, Link, Plot, Section, descriptions, say, section
from bench.report.section import findings as worked_out
from bench.report.site import Page, at
from data import croissant
from data.dataset import Dataset, open_dataset

SCENES = 8
"""Test scenes that are shown of one data set; every number is of all of them."""
DATASET = ("classes", "details", "objects", "ablation", "latency")
HEADINGS = {"miou": "mIoU", "miou_official": "official", "miou_stated": "as stated"} | style.METERS
IN_SUMMARY = 2
"""Findings of each data set on the page above all suites; the first ones say most."""
ScenePages = Mapping[str, Sequence[figures.scenes.Page]]
"""The pages of test scenes by data set."""


@dataclass(frozen=True)
class DatasetPart:
    """What is known of one data set of the suite."""

    name: str
    entries: list[Entry]
    """Its runs, best first."""
    runs: pd.DataFrame
    """The table of them, in the same order."""
    findings: list[Finding]
    pairs: bootstrap.Pairs
    matrix: Section
    """Every two of them."""
    seeded: Section
    dataset: Dataset | None
    """None where its images are not here."""
    scenes: list[Image]
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
    points: pd.DataFrame
    """The same with one row for the seeds of a setting, and without runs that were not trained."""
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

    def from_home(self, name: str) -> str:
        """The address of a run's page, as seen from the suite's first page."""
        return at(f"{self.suite}/index.html")(self.target(name))

    @property
    def links(self) -> tuple[Link, ...]:
        """The suite's pages, in the order of the navigation."""
        pages = {
            self.suite: "index",
            **{f"data: {one}": f"datasets/{one}" for one in self.inputs.datasets},
            "memory": "memory",
            "ultra-high-resolution methods": "uhr_methods",
            "definitions and provenance": "about",
        }
        return tuple(Link(text, f"{self.suite}/{page}.html") for text, page in pages.items())


def collect(inputs: Inputs) -> Content:
    """Work out every table of a suite."""
    entries = inputs.entries
    runs = all_runs.runs(entries)
    meter = all_runs.axis_meter(runs)
    trained = [one for one in entries if one.run.trained]
    shown = runs[runs.run.isin([one.name for one in trained])]
    own = {name: [one for one in trained if one.dataset == name] for name in inputs.datasets}
    compared = {name: bootstrap.compare(of) for name, of in own.items()}
    parts = [_part(name, of, shown, meter, compared[name]) for name, of in own.items()]
    on_gpu = memory.gpu_section(inputs.gpus)
    predicted = memory.predicted_section(inputs.predicted)
    tables = [
        all_runs.runs_section(shown, meter),
        all_runs.classes_section(entries),
        all_runs.details_section(entries),
        all_runs.objects_section(entries, shown),
        all_runs.ablation_section(entries, runs, meter),
        all_runs.latency_section(entries),
        all_runs.confusion_section(entries),
        all_runs.pairs_section(compared),
        published.verdict_section(entries, runs),
        predicted,
        memory.explained_section(inputs.predicted),
        *memory.growth_sections(inputs.predicted),
        on_gpu,
        memory.paper_accuracy_section(on_gpu.rows, predicted.rows),
        memory.collapsed_head_section(inputs.collapsed_head),
        memory.sub_batch_section(inputs.sub_batch),
        memory.allocator_section(inputs),
        memory.estimates_section(inputs.estimates),
        published.uhr_section(entries, runs),
        published.ranking_section(entries),
        published.released_section(entries, runs),
        memory.uhr_section(inputs.uhr_methods),
        published.unspecified_section(),
        *(part.seeded for part in parts),
    ]
    where = findings.where(runs, inputs.records())
    points = evaluations.seeds_as_one(shown, evaluations.groups(entries))
    return Content(inputs, runs, points, meter, where, {one.name: one for one in tables}, parts)


def drawings(content: Content) -> list[figures.static.Drawing]:
    """What draws each static figure."""
    sections = [_accuracy(content, ()), *content.tables.values()]
    sections += [_columns(content, part) for part in content.parts]
    found = [image for one in sections for image in one.figures if isinstance(image, Image)]
    found += [image for part in content.parts for image in part.scenes]
    return [(one.name, one.draw, one.kinds) for one in found if one.draw]


def summary(content: Content) -> dict[str, Any]:
    """What the page above all suites shows of this one."""
    first = content.parts[0]
    found = [[o.topic, o.text] for part in content.parts for o in part.findings[:IN_SUMMARY]]
    figure, alt = f"figure1a_{first.name}", "mIoU against peak memory, one point a run"
    seeded = next((part.seeded for part in content.parts if part.seeded), None)
    if seeded:  # several seeds are the headline where there are any
        found = [["Several seeds", text] for text in seeded.findings[:IN_SUMMARY]]
        figure, alt = seeded.name, "mIoU of several seeds"
    return {
        "name": content.suite,
        "benchmark": BENCHMARK,
        "machine": content.inputs.suite.machine,
        "datasets": content.inputs.datasets,
        "runs": len(content.runs),
        "figure": f"{figure}.svg",
        "description": alt,
        "findings": found,
    }


def overview(content: Content) -> Page:
    """What the page above all suites begins with: the figure at the paper's image size."""
    lead = content.tables[memory.LEAD]
    link = Link("Its numbers", f"{content.suite}/memory.html#{memory.LEAD}")
    shown = replace(lead, rows=pd.DataFrame(), columns={}, note="", links=[link])
    return Page("index.html", [shown] if lead else [], **descriptions()["pages"]["overview"])


def pages(content: Content, scenes: ScenePages) -> list[Page]:
    """All pages of the suite but those of scenes, its first page first."""
    suite, tables = content.suite, content.tables
    rows = content.runs.set_index("run", drop=False)

    def page(path: str, sections: Sequence[Section] = (), **fill: Any) -> Page:
        """With the texts and tables of sections.yaml; those of one kind are in a folder of that name."""
        texts = {"kicker": f"suite {suite}", **descriptions()["pages"][path.partition("/")[0]]}
        listed = [tables[name] for name in texts.pop("tables", "").split()]
        said: dict[str, Any] = {
            key: say(text, content=content, **fill) for key, text in texts.items()
        }
        return Page(f"{suite}/{path}.html", [*sections, *listed], **said)

    first = content.parts[0]
    points = content.points[content.points.dataset == first.name]
    home = page("index", _home(content), lead=findings.lead(points, content.meter, first.pairs))
    found = [replace(home, numbers=findings.tiles(points, content.meter))]
    for part in content.parts:
        own = _of_dataset(content, part, scenes.get(part.name, ()))
        found.append(page(f"datasets/{part.name}", own, part=part))
    found += [
        page("memory"),
        page("uhr_methods"),
        page("about", _about(content)),
    ]
    for entry in content.inputs.entries:
        own = run_page.run_sections(content.inputs, entry, scenes.get(entry.dataset, ()))
        one = page(f"runs/{entry.name}", own, entry=entry)
        numbers = worked_out("numbers", row=rows.loc[entry.name])
        warning = "; ".join(filter(None, (entry.reason, entry.outdated)))
        found.append(replace(one, numbers=numbers, warning=warning))
    return found


def _part(
    name: str, entries: Sequence[Entry], runs: pd.DataFrame, meter: str, compared: bootstrap.Pairs
) -> DatasetPart:
    own = evaluations.by_accuracy(runs[runs.dataset == name])
    order = list(own.run)
    ordered = sorted(entries, key=lambda entry: order.index(entry.name))
    limits = all_runs.ceilings(ordered)
    dataset, scenes, why = None, [], "there are no predictions here: run `dvc repro`"
    try:
        dataset = open_dataset(name)
    except UserError as error:  # numbers are worth a page without images
        why = str(error)
    if dataset and any(entry.predictions.is_dir() for entry in ordered):
        ids = dataset.ids("test")[:SCENES]
        alt = "image, label, and the prediction and errors of each run"
        drawn = {id: figures.scenes.sheet(dataset, id, ordered) for id in ids}
        scenes = [
            Image(f"scenes/{id}", f"{id}: {alt}", *one, ("png",)) for id, one in drawn.items()
        ]
    return DatasetPart(
        name=name,
        entries=ordered,
        runs=own,
        findings=findings.summary(own, meter, compared),
        pairs=compared,
        matrix=all_runs.matrix_section(compared, own),
        seeded=all_runs.seeds_section(name, evaluations.groups(ordered), limits),
        dataset=dataset,
        scenes=scenes,
        no_images=why,
    )


def croissants(content: Content) -> dict[str, dict[str, Any]]:
    """The Croissant description of every data set of the suite, by the path below site/."""
    inputs, known = content.inputs, {part.name: part.dataset for part in content.parts}
    made = {one.dataset: one.evaluated.provenance for one in inputs.entries if one.evaluated}
    return {
        _croissant(content, name): croissant.describe(
            name,
            known.get(name) or inputs.about(name),
            style.CREDITS["datasets"].get(source.source, {}),
            made.get(name, {}).get("data_sha256", ""),
            str(BENCHMARK),
        )
        for name, source in inputs.suite.datasets.items()
    }


def _croissant(content: Content, dataset: str) -> str:
    return f"{content.suite}/datasets/{dataset}.croissant.json"


def _home(content: Content) -> list[Section]:
    tables, parts = content.tables, content.parts
    seeded = [part.seeded for part in parts if part.seeded]
    known = (content.runs, content.meter, content.where)
    plots, said, runs = [], [], []
    for number, part in enumerate(parts, 1):
        of = f": {part.name}" if len(parts) > 1 else ""
        said.append(section("findings_of", fill={"of": of, "seeded": seeded}, facts=part.findings))
        title = tables["runs"].title + of
        own = replace(tables["runs"], title=title, rows=part.runs, facts=_failures(part))
        runs.append(own)
        of_part = (f"figure-{number}", part.name, part.entries, *known, content.from_home)
        plots.append(figures.accuracy.with_menus(*of_part))
    shown = [one for one in plots if one.content["variants"]] or plots[:1]
    figure = _accuracy(content, shown)
    return [figure, *runs, *said, *seeded, tables["published"]]


def _accuracy(content: Content, plots: Sequence[Plot]) -> Section:
    """The main figure: interactive for each data set, and static."""
    records, meter = content.inputs.records(), content.meter.removesuffix("_bytes")
    return section(
        "figure",
        draw=partial(
            figures.accuracy.accuracy_memory, content.points, content.meter, content.where
        ),
        fill={
            "gate": evaluations.GATE,
            "known": findings.definitions(content.inputs.entries),
            "meter": meter,
            "where": content.where,
            "machine": findings.machine(records),
        },
        figures=tuple(plots),
        links=content.links[1:-3],
    )


def _failures(part: DatasetPart) -> list[Finding]:
    failed = part.runs[part.runs.status != "ok"]
    why = [Finding(*one) for one in zip(failed.run, failed.reason, strict=True)]
    return [*why, *findings.reservations(part.entries)]


def _columns(content: Content, part: DatasetPart) -> Section:
    """Figure 1 of the paper, at the width of a column."""
    own = content.points[content.points.dataset == part.name]
    draw = partial(figures.charts.figure1, frame=own, meter=content.meter, where=content.where)
    images = [
        Image(f"figure1{letter}_{part.name}", alt, f"({letter}) {alt}.", partial(draw, letter))
        for letter, alt in figures.charts.FIGURE1_PANELS
    ]
    return section("figures", figures=tuple(images), fill={"gate": evaluations.GATE})


def _of_dataset(
    content: Content, part: DatasetPart, scenes: Sequence[figures.scenes.Page]
) -> list[Section]:
    classes, *others = (content.tables[name].of(part.name) for name in DATASET)
    rows = evaluations.by_accuracy(classes.rows) if len(classes.rows) else classes.rows
    values, below = findings.baseline_finding(part.name, part.entries, part.runs)
    shown = {
        "dataset": part.name,
        "no_images": "" if part.scenes else part.no_images,
        "error": figures.palette.ERROR,
        "more": len(part.scene_ids) - len(part.scenes),
    }
    links = [Link(one.scene, one.target) for one in scenes]
    return [
        _columns(content, part),
        replace(classes, rows=rows),
        *others,
        part.matrix,
        section("baseline", fill=values, facts=below),
        section("scenes", fill=shown, figures=tuple(part.scenes), links=links),
    ]


def _about(content: Content) -> list[Section]:
    inputs = content.inputs
    known = findings.definitions(inputs.entries) | descriptions()["definitions"]
    defined = [Finding(HEADINGS.get(name, name), text) for name, text in known.items()]
    credits = [Finding(part.name, part.credit) for part in content.parts if part.credit]
    described = [
        Link(f"{one} as Croissant", _croissant(content, one)) for one in inputs.suite.datasets
    ]
    return [
        section("about/definitions", facts=defined),
        section("provenance", facts=findings.provenance(inputs.records())),
        section("about/data", facts=credits, links=described),
        published.methods_section(dict.fromkeys(entry.network for entry in inputs.entries)),
        section("about/again", fill={"suite": inputs.suite.suite}),
        section("about/cite", links=[Link("GLNet’s paper", "https://arxiv.org/abs/1905.06368")]),
    ]
