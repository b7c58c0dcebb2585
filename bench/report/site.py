"""The site: pages out of templates/, and the assets of a suite.

It opens from disk, so every address in it is relative: a template asks `at` for the way from its
own page to a file below site/. Scripts are plain files and data is in the page, for a browser
neither fetches nor imports from disk."""

import json
import os
import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from bench.files import csv_text, write_bytes, write_text
from bench.report.load_records import BENCHMARK
from bench.report.section import Finding, Link, Plot, Section, Target

_HERE = Path(__file__).parent
ASSETS = "assets"
"""Folder of a suite that its pages take style and scripts from."""
SUMMARY = "summary.json"


@dataclass(frozen=True)
class Site:
    """Where pages are written, and the links at the top of each."""

    folder: Path
    """The folder site/."""
    suite: str
    """Whose assets the pages use."""
    links: tuple[Link, ...] = ()
    """In the order of the navigation."""

    def write(self, path: str, template: str, **content: Any) -> Path:
        """Fill `templates/TEMPLATE` and write it to `path` below site/.

        Every name that the template uses must be given."""
        filled = _environment().get_template(template)
        known = {"site": self, "here": path, "at": at(path), "assets": f"{self.suite}/{ASSETS}"}
        code = os.environ.get("REPOSITORY_URL", "")
        text = filled.render(known, benchmark=BENCHMARK, code=code, **content)
        write_text(self.folder / path, text)
        return self.folder / path


@dataclass(frozen=True)
class Page:
    """What the one template of all pages renders."""

    path: str
    """Below site/."""
    sections: Sequence[Section]
    title: str
    kicker: str = ""
    heading: str = ""
    """The title where it is empty."""
    lead: str = ""
    numbers: Sequence[Finding] = ()
    warning: str = ""


def write_page(
    site: Site, page: Page, target: Target, template: str = "page.html.j2", **more: Any
) -> None:
    """Render a page; the id of a section is its name, with a number where that comes again."""
    names: list[str] = []
    sections = []
    for one in page.sections:
        if one or one.empty:
            times = names.count(one.name)
            sections.append((f"{one.name}-{times + 1}" if times else one.name, one))
            names.append(one.name)
    drawn = any(isinstance(figure, Plot) for _, one in sections for figure in one.figures)
    site.write(
        page.path,
        template,
        page=page,
        sections=sections,
        drawn=drawn,
        folder=site.suite,
        target=target,
        **more,
    )


def write_overview(site: Site, summary: Mapping[str, Any], page: Page) -> None:
    """Write the suite's summary beside its pages, and the page above all suites, which goes on with the
    summaries that there are: it knows all that have been built, whichever is active now."""
    text = json.dumps(summary, indent=1, sort_keys=True)
    write_text(site.folder / site.suite / SUMMARY, text + "\n")
    suites = write_suites(site.folder)
    paths = {one["name"]: site.folder / one["name"] / "tables/runs.csv" for one in suites}
    tables = {name: pd.read_csv(path) for name, path in paths.items() if path.exists()}
    joined = (
        pd.concat(tables, names=["suite"]).droplevel(1).reset_index() if tables else pd.DataFrame()
    )
    write_text(site.folder / "runs.csv", csv_text(joined))
    links = tuple(Link(one["name"], f"{one['name']}/index.html") for one in suites)
    home = replace(site, links=links)
    write_page(home, page, lambda run: "", "overview.html.j2", suites=suites)


def write_suites(folder: Path) -> list[dict[str, Any]]:
    """Write the script by which every page leads to the suites of a site; returns what they say of
    themselves. Those of another version of the benchmark are left out."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob(f"*/{SUMMARY}"))]
    suites = [one for one in found if one.get("benchmark") == BENCHMARK]
    known = f"const SUITES = {json.dumps([one['name'] for one in suites])};\n"
    write_text(folder / "suites.js", known)
    return suites


def at(page: str) -> Callable[[str], str]:
    """Target below site/ -> its address as seen from `page`; one of another host stays."""

    def address(target: str) -> str:
        if target.startswith("https://"):
            return target
        path, mark, fragment = target.partition("#")
        return quote(posixpath.relpath(path, posixpath.dirname(page) or ".")) + mark + fragment

    return address


def write_assets(folder: Path) -> None:
    """Copy style and scripts, ours and others', with the others' licences, to `folder`/assets."""
    write_suites(folder.parent)
    for path in sorted([*(_HERE / "assets").iterdir(), *(_HERE / "vendor").iterdir()]):
        if path.suffix != ".md":
            write_bytes(folder / ASSETS / path.name, path.read_bytes())


def data(values: Mapping[str, Any]) -> Markup:
    """Values for a script of the page, as JSON that no value can break out of."""
    return htmlsafe_json_dumps(
        values,
        allow_nan=False,
        separators=(",", ":"),
        sort_keys=True,
        default=lambda number: number.item(),  # of numpy
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data"] = data
    return environment
