"""A table, its figures and what they say, as data: one `Section`, named once. From it come the table
of a page, the CSV, Markdown and LaTeX files, and the caption."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from ruamel.yaml import YAML

from bench.report import style

Form = Callable[[Any], str]
Target = Callable[[str], str]
"""Run -> its page, as a path below site/, or empty if there is none."""
SPECIFICATIONS = Path(__file__).parent / "sections.yaml"
WORDY = ("settings", "note", "at", "missing")
"""Columns of sentences, which may take several lines."""
_SHARES = ("miou", "low", "high", "published_miou", "accuracy")
_INTEGERS = ("flops", "parameters", "seeds", "repetitions")


@dataclass(frozen=True)
class Finding:
    """One line of a summary."""

    topic: str
    text: str


@dataclass(frozen=True)
class Image:
    """A static figure, in files NAME.KIND below SUITE/figures."""

    name: str
    alt: str
    caption: str = ""
    draw: Callable[[], Figure] | None = None
    """None: another module writes the files."""
    kinds: tuple[str, ...] = ("svg", "pdf", "png")
    legend: tuple[tuple[str, str], ...] = ()
    """(class, colour)."""


@dataclass(frozen=True)
class Plot:
    """An interactive figure."""

    id: str
    alt: str
    content: Mapping[str, Any]
    menus: tuple[Any, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Link:
    """A text that leads to a file of the site."""

    text: str
    target: str
    """Path below site/, for instance `earthcover/index.html`, with a #fragment or without."""


@dataclass(frozen=True)
class Cell:
    """One field of a table."""

    text: str
    kind: str = ""
    """CSS classes."""
    order: float | str | None = None
    """What the column is sorted by, where that is not the text."""
    bar: float | None = None
    """Length of the bar behind the text, 0..1."""
    heat: float | None = None
    """Darkness of the cell, 0..1."""
    mark: str | None = None
    """Colour of a dot before the text."""
    target: str = ""
    """Page below site/ that the text leads to."""


@dataclass(frozen=True)
class Section:
    """One part of a page; all but its title is optional."""

    name: str
    """Of its files, and its anchor in a page."""
    title: str
    rows: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Raw values: shares 0..1, bytes, seconds."""
    show: str = ""
    """Names of the columns that people read, in order, separated by spaces."""
    columns: Mapping[str, tuple[str, Form]] = field(default_factory=dict)
    """Column -> (heading, how a value reads), where the name does not say it."""
    caption: str = ""
    note: str = ""
    figures: tuple[Image | Plot, ...] = ()
    findings: Callable[[pd.DataFrame], Sequence[str]] = lambda rows: ()
    """Sentences worked out from the rows."""
    facts: tuple[Finding, ...] = ()
    links: tuple[Link, ...] = ()
    code: str = ""
    look: Callable[[str, Any], Mapping[str, Any]] = lambda name, row: {}
    """(column, row) -> fields of its `Cell`."""
    empty: str = ""
    """What a page says where there is no row; if this is empty too, it leaves the section out."""
    kinds: tuple[str, ...] = ("csv", "md", "tex")
    """Files of the table."""

    def __bool__(self) -> bool:
        parts = (self.figures, self.facts, self.code, self.note and not self.show, self.links)
        return bool(len(self.rows) or any(parts))

    def of(self, dataset: str) -> "Section":
        """The rows of one data set, without columns that it leaves empty."""
        own = self.rows[self.rows.dataset == dataset]
        return replace(self, rows=own.dropna(axis="columns", how="all"))

    @property
    def shown(self) -> dict[str, tuple[str, Form]]:
        """Column -> (heading, form), of those in which something is known."""
        known = [name for name in self.show.split() if name in self.rows]
        return {
            name: self.columns.get(name) or default_column(name)
            for name in known
            if self.rows[name].notna().any()
        }

    def head(self) -> list[Cell]:
        """The headings."""
        return [Cell(text, self._kind(name)) for name, (text, _) in self.shown.items()]

    def cells(self, target: Target = lambda run: "") -> list[list[Cell]]:
        """The table as a page shows it; a value of the column `run` leads to the run's page."""
        kinds = {name: self._kind(name) for name in self.shown}
        return [
            [
                Cell(
                    form(row[name]),
                    **{
                        "kind": kinds[name],
                        "order": _order(row[name]),
                        "target": target(str(row[name])) if name == "run" else "",
                        **self.look(name, row),
                    },
                )
                for name, (_, form) in self.shown.items()
            ]
            for _, row in self.rows.iterrows()
        ]

    def files(self) -> dict[str, str]:
        """Extension -> content: CSV in full precision, Markdown, and LaTeX with booktabs."""
        found = {"csv": self.rows.to_csv(index=False, lineterminator="\n")}
        if "md" in self.kinds:
            sides = ["left" if "left" in self._kind(name) else "right" for name in self.shown]
            texts = pd.DataFrame(
                {text: self.rows[name].map(form) for name, (text, form) in self.shown.items()},
                dtype=object,
            )
            markdown = texts.map(lambda cell: str(cell).replace("|", "\\|"))
            found["md"] = (
                markdown.to_markdown(index=False, disable_numparse=True, colalign=sides) + "\n"
            )
            found["tex"] = texts.map(lambda cell: str(cell).replace(style.NOTHING, "--")).to_latex(
                index=False,
                escape=True,
                column_format="".join(side[0] for side in sides),
                caption=self.caption or self.title,
            )
        return found

    def _kind(self, name: str) -> str:
        """Texts are flush left, numbers flush right."""
        text = self.rows[name].map(lambda value: isinstance(value, str)).any()
        return ("left words" if name in WORDY else "left") if text else "number"


def section(name: str, fill: Mapping[str, Any] | None = None, **more: Any) -> Section:
    """The section that sections.yaml describes under this name.

    Args:
        fill: values for the {braces} of its texts.
        more: fields of `Section`, its rows for instance.
    """
    described = {**descriptions()[name], "columns": {}}
    for column, given in (descriptions()[name].get("columns") or {}).items():
        heading, form = given if isinstance(given, list) else (given, None)
        default = default_column(column)
        described["columns"][column] = (heading or default[0], FORMS[form] if form else default[1])
    texts = {
        key: described[key].format(**(fill or {})) for key in ("note", "empty") if key in described
    }
    show = " ".join(described["columns"])
    return Section(name, **{"show": show, **described, **texts, **more})


def image(name: str, draw: Callable[[], Figure], fill: Mapping[str, Any] | None = None) -> Image:
    """The static figure that sections.yaml describes under this name."""
    alt, caption = (descriptions()["figures"][name][key] for key in ("alt", "caption"))
    return Image(name, alt, caption.format(**(fill or {})), draw)


@cache
def descriptions() -> dict[str, Any]:
    """Texts of the report, from sections.yaml."""
    found: dict[str, Any] = YAML(typ="safe").load(SPECIFICATIONS)
    return found


def table(rows: Iterable[Mapping[str, Any]], names: str) -> pd.DataFrame:
    """Rows as a frame with these columns, separated by spaces; bytes, pixels and counts are whole
    numbers that may be missing."""
    columns = names.split()
    frame = pd.DataFrame(list(rows), columns=columns)
    whole = [name for name in columns if name.endswith(("_bytes", "_px")) or name in _INTEGERS]
    return frame.astype({name: "Int64" for name in whole if _is_whole(frame[name])})


def default_column(name: str) -> tuple[str, Form]:
    """Heading and form of a column by its name and the unit that it ends in."""
    forms: Mapping[str, Form] = {
        "bytes": style.size,
        "s": style.duration,
        "points": signed,
        "ratio": optional("{:.2f}".format),
        "share": style.percent,
        "fps": rate,
        "parameters": style.count,
    }
    base, _, unit = name.rpartition("_")
    if name in _SHARES or unit == "miou":
        heading = name.replace("miou", "mIoU").replace("_", " ")
        return {"low": "95 % CI from", "high": "to"}.get(name, f"{heading} %"), style.percent
    if base in ("low", "high"):
        return default_column(base)[0], forms[unit]
    heading = (base if unit in ("bytes", "s") else name).replace("_", " ")
    return heading.replace("fps", "FPS"), forms.get(unit or base, optional(str))


def optional(form: Form) -> Form:
    """The same, with a dash for what is unknown."""
    return lambda value: style.NOTHING if pd.isna(value) else form(value)


def signed(points: Any) -> str:
    """`+1.2`."""
    return style.NOTHING if pd.isna(points) else f"{points:+.1f}"


def percent_points(share: Any) -> str:
    """A difference of shares as signed per cent points."""
    return signed(100 * share)


def rate(value: Any) -> str:
    """Three digits."""
    if pd.isna(value):
        return style.NOTHING
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def spaced(name: Any) -> str:
    """A class as people write it."""
    return str(name).replace("_", " ")


def _is_whole(values: pd.Series) -> bool:
    known = pd.to_numeric(values.dropna(), errors="coerce")
    return bool((known == known.round()).all())


def _order(value: Any) -> float | str | None:
    """What a value sorts by: numbers by themselves, what is unknown below all (an empty text does
    that), texts as they read."""
    if isinstance(value, str):
        return None
    return "" if pd.isna(value) else float(value)


FORMS: Mapping[str, Form] = {
    "percent": style.percent,
    "exact percent": optional(lambda v: f"{100 * v:.4f} %"),
    "percent points": percent_points,
    "signed": signed,
    "size": style.size,
    "duration": style.duration,
    "count": style.count,
    "rate": rate,
    "giga": optional(lambda v: rate(v / 1e9)),
    "tera": optional(lambda v: f"{v / 1e12:.2f}"),
    "whole": optional("{:.0f}".format),
    "tenths": optional("{:.1f}".format),
    "ratio": optional("{:.2f}".format),
    "exact ratio": optional("{:.3f}".format),
    "times": optional("{:.2f} ×".format),
    "commas": "{:,}".format,
    "network": style.network_name,
    "spaced": spaced,
    "printed": optional(lambda v: {"figure": "read off a plot", "exact": "printed"}[v]),
}
"""How values read, by the names that sections.yaml uses."""
