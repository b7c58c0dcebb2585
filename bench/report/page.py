"""The page: everything on one sheet that opens from disk, without a script and without a network.

What is HTML is in page.html.j2; here are the pieces that it is filled with."""

import base64
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from bench.report import style
from bench.report.panels import Pixels, png
from bench.report.table import Columns

# matplotlib's names for parts of a drawing; nothing refers to them, and two drawings share them.
_PART = re.compile(r' id="[A-Za-z.]*[a-z][A-Za-z.]+\d?[A-Za-z]*_\d+"')


@dataclass(frozen=True)
class Cell:
    """One field of a table."""

    text: str
    kind: str = ""
    """CSS classes."""
    bar: float | None = None
    """Length of the bar behind the text, 0..1."""
    heat: float | None = None
    """Darkness of the cell, 0..1."""
    mark: str | None = None
    """Colour of a dot before the text."""


@dataclass(frozen=True)
class Table:
    """Headings and rows of cells."""

    head: tuple[Cell, ...]
    rows: tuple[tuple[Cell, ...], ...]


def render(**content: Any) -> str:
    """index.html; every name that the template uses must be given."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["picture"] = picture
    return environment.get_template("page.html.j2").render(**content)


def inline(svg: bytes, description: str) -> str:
    """An SVG file as an element of the page, to be read by people and by screen readers."""
    text = svg.decode()
    text = _PART.sub("", text[text.index("<svg") :])
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)  # HTML knows both
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)  # as wide as the page
    return text.replace("<svg", f'<svg role="img" aria-label="{description}"', 1)


def picture(pixels: Pixels) -> str:
    """An array (h, w, 3) as an address inside the page: PNG where colours are few, else JPEG."""
    red, green, blue = np.moveaxis(pixels.astype(np.int32), -1, 0)
    packed, index = np.unique(red << 16 | green << 8 | blue, return_inverse=True)
    colours = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], -1).astype(np.uint8)
    if len(colours) <= 256:  # labels: every pixel keeps its colour
        flat = Image.fromarray(index.reshape(pixels.shape[:2]).astype(np.uint8), mode="P")
        flat.putpalette(colours.tobytes())
        return "data:image/png;base64," + base64.b64encode(png(flat)).decode()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def run_table(frame: pd.DataFrame, columns: Columns, meter: str) -> Table:
    """One line a run, with bars behind accuracy and the memory of the axis.

    Args:
        frame: `table.runs`.
        columns: `table.run_columns`.
        meter: the column of the memory axis.
    """
    colours = style.colours(frame.network)
    known = {name: rest for name, rest in columns.items() if frame[name].notna().any()}
    best = {"miou": frame.miou.max()}
    tops = {name: float(frame[name].max()) for name in ("miou", meter) if name in known}
    left = {"run", "strategy", "status"}
    rows = []
    for _, row in frame.iterrows():
        cells = []
        for name, (_, form) in known.items():
            value = row[name]
            bar = float(value) / tops[name] if name in tops and pd.notna(value) else None
            kind = "left" if name in left else "number"
            if name == "status":
                kind += f" status {value}"
            if name in best and value == best[name]:
                kind += " best"
            mark = colours[row.network] if name == "run" else None
            cells.append(Cell(form(value), kind, bar=bar, mark=mark))
        rows.append(tuple(cells))
    head = tuple(
        Cell(heading, "left" if name in left else "number") for name, (heading, _) in known.items()
    )
    return Table(head, tuple(rows))


def heat_table(frame: pd.DataFrame, columns: Columns, rare: Mapping[str, bool]) -> Table:
    """IoU by class, each cell as dark as its value; the means stand apart.

    Args:
        frame: `table.classes`.
        columns: `table.class_columns`.
        rare: which columns are classes that a second mean leaves out.
    """
    known = {name: rest for name, rest in columns.items() if frame[name].notna().any()}
    means = ("miou", "miou_without_rare")
    rows = []
    for _, row in frame.iterrows():
        cells = []
        for name, (_, form) in known.items():
            kind = "left" if name == "run" else "number mean" if name in means else "number heat"
            heat = float(row[name]) if name != "run" and pd.notna(row[name]) else None
            cells.append(Cell(form(row[name]), kind, heat=heat))
        rows.append(tuple(cells))
    head = tuple(
        Cell(
            heading + (" (apart)" if rare.get(name) else ""), "left" if name == "run" else "number"
        )
        for name, (heading, _) in known.items()
    )
    return Table(head, tuple(rows))


def plain_table(readable: pd.DataFrame, left: int) -> Table:
    """A table of texts; the first `left` columns stand left, and so does one without a heading,
    which holds remarks."""
    kinds = [
        "left" if number < left or not name else "number"
        for number, name in enumerate(readable.columns)
    ]
    head = tuple(Cell(str(name), kind) for name, kind in zip(readable.columns, kinds, strict=True))
    return Table(
        head,
        tuple(
            tuple(Cell(str(text), kind) for text, kind in zip(row, kinds, strict=True))
            for row in readable.itertuples(index=False, name=None)
        ),
    )
