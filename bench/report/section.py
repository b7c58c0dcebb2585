"""A table, its figures and what they say, as data: one `Section`, named once. From it come the table
of a page, the CSV, Markdown and LaTeX files, and the caption. sections.yaml has the texts."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import pandas as pd
from jinja2 import Environment, StrictUndefined, Template
from ruamel.yaml import YAML

from bench.files import csv_text, markdown_cell
from bench.report import style
from bench.report.style import FORMS, Form

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Target = Callable[[str], str]
"""Run -> its page, as a path below site/, or empty if there is none."""
DESCRIPTIONS = Path(__file__).parent / "sections.yaml"
WORDY = ("settings", "note", "at", "missing")
"""Columns of sentences, which may take several lines."""
CHOSEN = ("network", "method", "strategy")
"""Columns by whose values the rows of a table can be chosen."""
_INTEGERS = ("flops", "parameters", "seeds", "repetitions")


class Column(NamedTuple):
    """How people read a column of a table."""

    heading: str
    form: Form
    meaning: str = ""


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
    draw: "Callable[[], Figure] | None" = None
    """None: another module writes the files."""
    kinds: tuple[str, ...] = ("svg", "pdf", "png")


@dataclass(frozen=True)
class Plot:
    """An interactive figure."""

    id: str
    alt: str
    content: Mapping[str, Any]
    menus: Sequence[Mapping[str, Any]] = ()
    """Of sections.yaml, with the values that are `known` and the one that is `chosen`."""

    @property
    def note(self) -> str:
        """Of the variant that is shown first."""
        first = "|".join(menu["chosen"] for menu in self.menus)
        return str(self.content["variants"].get(first, {}).get("note", ""))


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
    meaning: str = ""
    """What a pointer that rests on it is told."""
    number: int = 0
    """Of the column of a heading."""
    values: Sequence[str] = ()
    """By which rows can be chosen, of a heading."""


@dataclass(frozen=True)
class Section:
    """One part of a page; all but its title is optional."""

    name: str
    """Of its files, and its anchor in a page."""
    title: str
    rows: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Raw values: shares 0..1, bytes, seconds."""
    columns: Mapping[str, Column] = field(default_factory=dict)
    """What people read of the rows, in order. `LOW..HIGH` is one column of two columns of rows."""
    caption: str = ""
    note: str = ""
    figures: tuple[Image | Plot, ...] = ()
    findings: Sequence[str] = ()
    """Sentences worked out from the rows."""
    facts: Sequence[Finding] = ()
    links: Sequence[Link] = ()
    code: str = ""
    heat: Collection[str] = ()
    """Columns of shares whose cells are darker the larger they are."""
    look: Callable[[str, Any], Mapping[str, Any]] = lambda name, row: {}
    """(column, row) -> fields of its `Cell`."""
    empty: str = ""
    """What a page says where there is no row; if this is empty too, it leaves the section out."""
    kinds: Sequence[str] = ("csv", "md", "tex")
    """Files of the table."""
    grid: bool = False
    """Whether all columns are shown, as of a matrix; else the first ones, and others on request."""
    DEFAULT: ClassVar = 7
    """Columns that are shown."""
    FOLDED: ClassVar = 60
    """A table of more rows opens on a click."""

    def __bool__(self) -> bool:
        parts = (self.figures, self.facts, self.code, self.note and not self.columns, self.links)
        return bool(len(self.rows) or any(parts))

    def of(self, dataset: str) -> "Section":
        """The rows of one data set, without columns that it leaves empty."""
        own = self.rows[self.rows.dataset == dataset]
        return replace(self, rows=own.dropna(axis="columns", how="all"))

    @property
    def shown(self) -> dict[str, Column]:
        """The columns in which something is known."""
        known = self.rows.columns[self.rows.notna().any()]
        return {n: column for n, column in self.columns.items() if n.partition("..")[0] in known}

    def head(self) -> list[Cell]:
        """The headings."""
        found = []
        for number, (name, one) in enumerate(self.shown.items()):
            chosen = self.rows[name].map(one.form) if name in CHOSEN else ()
            values = sorted({*chosen})
            kind = self._kind(name)
            found.append(Cell(one.heading, kind, meaning=one.meaning, number=number, values=values))
        return found

    def cells(self, target: Target = lambda run: "") -> list[list[Cell]]:
        """The table as a page shows it; a value of the column `run` leads to the run's page."""
        columns = [(name, one.form, self._kind(name)) for name, one in self.shown.items()]

        def cell(row: Any, name: str, form: Form, kind: str) -> Cell:
            value = _value(row, name)
            fields = {"kind": kind, "order": _order(value)}
            if name == "run":
                fields["target"] = target(value)
            if name in self.heat and pd.notna(value):
                fields |= {"kind": "number heat", "heat": float(value)}
            return Cell(form(value), **{**fields, **self.look(name, row)})

        return [[cell(row, *one) for one in columns] for _, row in self.rows.iterrows()]

    def files(self) -> dict[str, str]:
        """Extension -> content: CSV in full precision, Markdown, and LaTeX with booktabs."""
        found = {"csv": csv_text(self.rows)}
        if "md" in self.kinds:
            head = self.head()
            sides = ["left" if "left" in cell.kind else "right" for cell in head]
            cells = [[cell.text for cell in row] for row in self.cells()]
            texts = pd.DataFrame(cells, columns=[cell.text for cell in head], dtype=object)
            markdown = texts.map(markdown_cell).rename(columns=markdown_cell)
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
        text = self.rows[name.partition("..")[0]].map(lambda value: isinstance(value, str)).any()
        return ("left words" if name in WORDY else "left") if text else "number"


def section(
    name: str,
    rows: pd.DataFrame | Iterable[Any] = (),
    columns: Mapping[str, Any] | None = None,
    draw: "Callable[[], Figure] | None" = None,
    fill: Mapping[str, Any] | None = None,
    **more: Any,
) -> Section:
    """The section that sections.yaml describes under this name.

    Args:
        name: in sections.yaml; in a page and for files what follows a slash.
        rows: a frame, or what `table` takes.
        columns: those that people read, where the description does not know them.
        draw: of the figure that it describes; None: without it, and so is a table without rows.
        fill: values for its texts.
        more: fields of `Section`.
    """
    described = {"name": name.rpartition("/")[2], **descriptions()[name]}
    figure, fill = described.pop("figure", None), fill or {}
    frame = rows if isinstance(rows, pd.DataFrame) else table(name, rows)
    columns = described.pop("columns", {}) if columns is None else columns
    for used in ("table", "from", "computed"):
        described.pop(used, None)
    fields = {**_filled(described, fill), "rows": frame, "columns": _columns(columns), **more}
    if draw and (len(frame) or not columns):
        image = Image(**_filled(figure, fill), draw=draw)
        fields["figures"] = (*fields.get("figures", ()), image)
    return Section(**fields)


def table(name: str, rows: Iterable[Any] = ()) -> pd.DataFrame:
    """Rows as a frame with the columns that sections.yaml gives this table, `columns` where it has
    no `table`; bytes, pixels and counts are whole numbers that may be missing.

    Args:
        rows: mappings, whose fields and fields of fields become columns as `from` says, or values
            in the order of the columns. What is in `computed` is added by its formula.
    """
    described, rows = descriptions()[name], list(rows)
    read = " ".join(described.get("columns", ())).replace("..", " ")
    names = described.get("table", read).split()
    if any(isinstance(row, Mapping) for row in rows):
        source = described.get("from", {})
        frame = pd.json_normalize(rows).reindex(columns=[source.get(one, one) for one in names])
        frame.columns = names
    else:
        frame = pd.DataFrame(rows, columns=names)
    whole = [one for one in names if one.endswith(("_bytes", "_px")) or one in _INTEGERS]
    frame = frame.astype({one: "Int64" for one in whole if _is_whole(frame[one])})
    numbers = frame.apply(pd.to_numeric, errors="coerce").astype("Float64")
    for column, formula in described.get("computed", {}).items():
        frame[column] = numbers.eval(formula).astype("Int64" if column in whole else float)
    return frame


def sentences(name: str, **values: Any) -> list[str]:
    """The sentences of sections.yaml under this name; those that come out empty are left out."""
    found = (say(text, **values) for text in descriptions()["sentences"][name])
    return [text for text in found if text]


def findings(name: str, **values: Any) -> list[Finding]:
    """The same as lines of a summary, by their topics."""
    found = {topic: say(text, **values) for topic, text in descriptions()["findings"][name].items()}
    return [Finding(topic, text) for topic, text in found.items() if text]


def say(text: str, **values: Any) -> str:
    """A text of sections.yaml, which is a Jinja template; the names of `FORMS` are its filters, and
    `known` is its test of a value that is not missing."""
    return _template(text).render(**values).strip()


@cache
def descriptions() -> dict[str, Any]:
    """Texts of the report, from sections.yaml."""
    found: dict[str, Any] = YAML(typ="safe").load(DESCRIPTIONS)
    return found


@cache
def _template(text: str) -> Template:
    return _environment().from_string(text)


@cache
def _environment() -> Environment:
    environment = Environment(undefined=StrictUndefined, autoescape=False)  # noqa: S701 - no HTML
    environment.filters |= FORMS
    environment.tests["known"] = pd.notna
    return environment


def _filled(described: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The same with its texts filled in."""
    return {k: say(one, **values) if isinstance(one, str) else one for k, one in described.items()}


def _columns(given: Mapping[str, Any]) -> dict[str, Column]:
    """Each column: as given, as any table has it, or by its name."""
    found = {}
    for name, about in given.items():
        low, _, high = name.partition("..")
        usual = descriptions()["columns"].get(low, style.spaced(name))
        heading, *more = [usual] if isinstance(usual, str) else usual
        if isinstance(about, str):
            heading = about
        elif about:
            heading, *more = about
        form, *meaning = more or ["text"]
        form = FORMS[form] if isinstance(form, str) else form
        found[name] = Column(heading, style.ends(form) if high else form, *meaning)
    return found


def _value(row: Any, name: str) -> Any:
    """Of a column; of a column of ranges both ends, or None where they are unknown."""
    low, _, high = name.partition("..")
    if not high:
        return row[name]
    return None if pd.isna(row[low]) else (row[low], row[high])


def _is_whole(values: pd.Series) -> bool:
    known = pd.to_numeric(values.dropna(), errors="coerce")
    return bool((known == known.round()).all())


def _order(value: Any) -> float | str | None:
    """What a value sorts by: numbers by themselves, ranges by their lower end, what is unknown below
    all (an empty text does that), texts as they read."""
    if isinstance(value, str):
        return None
    value = value[0] if isinstance(value, tuple) else value
    return "" if pd.isna(value) else float(value)
