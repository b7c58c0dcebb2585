"""The site: pages out of templates/, and the assets that the pages of all suites share.

It opens from disk, so every address in it is relative: a template asks `at` for the way from its
own page to a file below report/. Scripts are plain files and data stands in the page, for a browser
neither fetches nor imports from disk."""

import json
import posixpath
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bench.files import write_bytes, write_text

_HERE = Path(__file__).parent
OWN, VENDORED = _HERE / "assets", _HERE / "vendor"
Target = Callable[[str], str]
"""Run -> its page below report/, or empty if there is none."""
ASSETS = "assets"
"""Folder below report/ that all pages take style and scripts from."""


@dataclass(frozen=True)
class Link:
    """A text that leads to a file of the site."""

    text: str
    target: str
    """Path below report/, for instance `earthcover/index.html`, with a #fragment or without."""


@dataclass(frozen=True)
class Site:
    """Where pages are written, and what stands at the top of each."""

    folder: Path
    """The folder report/."""
    suite: str | None = None
    """None: a page above all suites."""
    links: tuple[Link, ...] = ()
    """The suite's own pages, in the order of the navigation."""

    def write(self, path: str, template: str, **content: Any) -> Path:
        """Fill `templates/TEMPLATE` and write it to `path` below report/.

        Every name that the template uses must be given."""
        text = (
            _environment()
            .get_template(template)
            .render(site=self, here=path, at=at(path), **content)
        )
        write_text(self.folder / path, text)
        return self.folder / path


def at(page: str) -> Callable[[str], str]:
    """Target below report/ -> its address as seen from `page`."""

    def address(target: str) -> str:
        path, mark, fragment = target.partition("#")
        return quote(posixpath.relpath(path, posixpath.dirname(page) or ".")) + mark + fragment

    return address


def write_assets(folder: Path) -> None:
    """Copy style and scripts, ours and others', with the others' licences, to report/assets."""
    for path in sorted([*OWN.iterdir(), *VENDORED.iterdir()]):
        if path.suffix != ".md":
            write_bytes(folder / ASSETS / path.name, path.read_bytes())


def forget(folder: Path, kept: Iterable[Path]) -> None:
    """Remove pages that lie directly in `folder` and are not among `kept`: of runs and scenes that
    the suite no longer has."""
    alive = set(kept)
    for path in folder.glob("*.html"):
        if path not in alive:
            path.unlink()


def data(values: Mapping[str, Any]) -> Markup:
    """Values for a script of the page, as JSON that no value can break out of."""
    text = json.dumps(values, allow_nan=False, separators=(",", ":"), sort_keys=True)
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)  # noqa: S704 - escaped just above


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
