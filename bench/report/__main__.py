"""Stage `report`: what the records say -> site/SUITE, the tables, metrics and figures of
report/SUITE that git keeps, and the page above all suites."""

import argparse
import json
import shutil
import tempfile
import webbrowser
from pathlib import Path

import pandas as pd

from bench import cli
from bench.config import read_suite
from bench.files import write_text
from bench.report import figures
from bench.report.load_records import Inputs, load_records
from bench.report.pages import Content, collect, croissants, drawings, overview, pages, summary
from bench.report.runs import run_metrics
from bench.report.site import Site, write_assets, write_overview, write_page

REPORT, SITE = Path("report"), Path("site")
KEPT = {
    "dubai": ("accuracy_memory",),
    "earthcover": ("estimates", "growth", "paper_accuracy", "paper_memory"),
    "earthcover-long": ("accuracy_memory", "on_card"),
    "idrid": ("accuracy_memory", "object_sizes"),
    "mosaic": ("seeds_mosaic",),
}
"""Figures that README and docs show, by suite, as SVG below report/SUITE/figures."""


def report(inputs: Inputs, site_folder: Path = SITE, folder: Path = REPORT) -> Path:
    """Write the whole report of a suite; returns its first page.

    The same records and images give the same bytes. What git keeps stays as it is where
    records are missing that it was made from.

    Args:
        site_folder: of the site; the suite has one of its own name in it.
        folder: of what git keeps; likewise.
    """
    content = collect(inputs)
    own, kept = site_folder / content.suite, folder / content.suite
    parts = [kept / name for name in ("tables", "metrics", "figures")]
    if lost := _lost(content, kept):
        print(f"{kept} is kept as it is: records are missing for its {', '.join(lost)}.")
        with tempfile.TemporaryDirectory() as other:
            return report(inputs, site_folder, Path(other))
    shutil.rmtree(own, ignore_errors=True)
    site = Site(site_folder, content.suite, content.links)
    with figures.static.written(drawings(content), own / "figures"):
        for name, section in content.tables.items():
            for kind, text in section.files().items() if len(section.rows) else ():
                write_text(own / "tables" / f"{name}.{kind}", text)
        write_assets(own)
        _write_pages(site, content)
    for stale in parts:  # after all that could fail
        shutil.rmtree(stale, ignore_errors=True)
    for table in (own / "tables").glob("*.csv"):
        write_text(kept / "tables" / table.name, table.read_text())
    for run, numbers in run_metrics(content.runs):
        write_text(kept / "metrics" / f"{run}.json", json.dumps(numbers, indent=1) + "\n")
    (kept / "figures").mkdir(parents=True)  # DVC expects the folder, of other suites too
    for name in KEPT.get(content.suite, ()):
        if (drawn := own / "figures" / f"{name}.svg").exists():
            shutil.copy(drawn, kept / "figures")
    return own / "index.html"


def _lost(content: Content, kept: Path) -> list[str]:
    """Runs and tables that an earlier report has, and this one has not for want of records."""
    earlier, now = kept / "tables/runs.csv", content.runs
    if not content.inputs.missing or not earlier.exists():
        return []
    known = pd.read_csv(earlier)
    runs = set(known.run[known.status != "missing"]) & set(now.run[now.status == "missing"])
    tables = [name for name, one in content.tables.items() if not len(one.rows)]
    return sorted(runs) + [one for one in tables if (kept / "tables" / f"{one}.csv").exists()]


def _write_pages(site: Site, content: Content) -> None:
    scenes = {}
    for part in content.parts:
        if part.dataset:
            scenes[part.name] = figures.scenes.write_pages(
                site, content.inputs, part.dataset, part.scene_ids
            )
    for path, described in croissants(content).items():
        write_text(site.folder / path, json.dumps(described, indent=1, ensure_ascii=False) + "\n")
    for page in pages(content, scenes):
        write_page(site, page, content.target)
    write_overview(site, summary(content), overview(content))


def work(arguments: argparse.Namespace) -> None:
    """Write the report of a suite from the records that there are."""
    inputs = load_records(read_suite(arguments.suite))
    for entry in inputs.entries:
        if entry.outdated:
            print(f"warning: {entry.name}: {entry.outdated}.")
    path = report(inputs)
    print(path)
    if arguments.open:
        webbrowser.open(path.resolve().as_uri())


if __name__ == "__main__":
    cli.main(work, cli.add_report_arguments)
