"""Tables as pages show them: what is HTML is in templates/, here are the cells that it is filled
with."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bench.report import style
from bench.report.figures import palette
from bench.report.site import Target
from bench.report.table import Columns

WORDY = ("settings", "note", "at")
"""Columns of sentences, which may take several lines."""


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
    target: str | None = None
    """Page below report/ that the text leads to."""


@dataclass(frozen=True)
class Table:
    """Headings and rows of cells."""

    head: tuple[Cell, ...]
    rows: tuple[tuple[Cell, ...], ...]


def run_table(frame: pd.DataFrame, columns: Columns, meter: str, target: Target) -> Table:
    """One line a run, with bars behind accuracy and the memory of the axis.

    Args:
        frame: `table.runs`.
        columns: `table.run_columns`.
        meter: the column of the memory axis.
        target: the page of a run.
    """
    colours = palette.colours(frame.network)
    best = frame.miou.max()
    tops = {name: float(frame[name].max()) for name in ("miou", meter) if frame[name].notna().any()}

    def look(name: str, row: Any) -> dict[str, Any]:
        value = row[name]
        found: dict[str, Any] = {}
        if name in tops and pd.notna(value):
            found["bar"] = float(value) / tops[name]
        if name == "status":
            found["kind"] = f"left status {value}"
        if name == "miou" and value == best:
            found["kind"] = "number best"
        if name == "run":
            found["mark"] = colours[row.network]
        return found

    return _table(frame, columns, {"run", "strategy", "status"}, target, look)


def heat_table(
    frame: pd.DataFrame, columns: Columns, rare: Collection[str], target: Target
) -> Table:
    """IoU by class, each cell as dark as its value; the means stand apart.

    Args:
        frame: `table.classes`.
        columns: `table.class_columns`.
        rare: columns of classes that a second mean leaves out.
        target: the page of a run.
    """
    means = ("miou", "miou_without_rare")
    apart = {
        name: (heading + (" (apart)" if name in rare else ""), form)
        for name, (heading, form) in columns.items()
    }

    def look(name: str, row: Any) -> dict[str, Any]:
        if name in means:
            return {"kind": "number mean"}
        if name == "run" or pd.isna(row[name]):
            return {}
        return {"kind": "number heat", "heat": float(row[name])}

    return _table(frame, apart, {"run"}, target, look)


def plain_table(
    frame: pd.DataFrame, columns: Columns, left: int, target: Target = lambda run: ""
) -> Table | None:
    """A table whose first `left` columns stand left, and so does one without a heading, which
    holds remarks; None if it has no line.

    Args:
        frame: raw values.
        columns: how they read; one in which nothing is known is left out.
        left: number of columns.
        target: the page that a value of the column `run` leads to.
    """
    if frame.empty:
        return None
    flush = set(WORDY) | {
        name
        for number, (name, (head, _)) in enumerate(columns.items())
        if number < left or not head
    }
    return _table(frame, columns, flush, target, lambda name, row: {})


def confusion_table(counts: Any, classes: list[str]) -> Table:
    """Pixels by true class (lines) and predicted class (columns), as shares of the line.

    Args:
        counts: (K + 1, K), the last line the unlabelled pixels, which are not shown.
    """
    head = (Cell("is \\ is called", "left"), *(Cell(_spaced(name), "number") for name in classes))
    rows = []
    for name, line in zip(classes, counts[:-1], strict=True):
        pixels = int(line.sum())
        shares = [int(count) / pixels if pixels else float("nan") for count in line]
        cells = [
            Cell(style.percent(share), "number heat", order=int(count), heat=_heat(share))
            for share, count in zip(shares, line, strict=True)
        ]
        rows.append((Cell(_spaced(name), "left"), *cells, Cell(f"{pixels:,}", "number", pixels)))
    return Table((*head, Cell("pixels", "number")), tuple(rows))


def _table(
    frame: pd.DataFrame,
    columns: Columns,
    left: Collection[str],
    target: Target,
    look: Callable[[str, Any], Mapping[str, Any]],
) -> Table:
    """A line a row of the frame; `look` says what is particular about a field."""
    known = {name: rest for name, rest in columns.items() if frame[name].notna().any()}
    kinds = {name: "left" if name in left else "number" for name in known}
    rows = []
    for _, row in frame.iterrows():
        cells = []
        for name, (_, form) in known.items():
            given: dict[str, Any] = {"kind": kinds[name], "order": _order(row[name])}
            if name in WORDY:
                given["kind"] += " words"
            if name == "run":
                given["target"] = target(str(row.run)) or None
            cells.append(Cell(form(row[name]), **(given | dict(look(name, row)))))
        rows.append(tuple(cells))
    head = tuple(Cell(heading, kinds[name]) for name, (heading, _) in known.items())
    return Table(head, tuple(rows))


def _order(value: Any) -> float | str | None:
    """What a value sorts by: numbers by themselves, what is unknown below all (an empty text does
    that), texts as they read."""
    if isinstance(value, str):
        return None
    return "" if pd.isna(value) else float(value)


def _heat(share: float) -> float | None:
    return None if pd.isna(share) else share


def _spaced(name: str) -> str:
    return name.replace("_", " ")
