"""The page of memory that was worked out: beside what papers print, over the size of an image, and
beside what allocators booked."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bench.report import fast, growth, on_card, paper, prediction
from bench.report.load_records import Inputs
from bench.report.page import plain_table
from bench.report.site import Site, Target


@dataclass(frozen=True)
class Worked:
    """Its tables, in raw values."""

    papers: pd.DataFrame
    """`paper.compare`."""
    explained: pd.DataFrame
    """`paper.explained`."""
    predictions: pd.DataFrame
    """`prediction.rows`."""
    growing: pd.DataFrame
    """`growth.points`."""
    slopes: pd.DataFrame
    """`growth.slopes`."""
    fast: pd.DataFrame
    """`fast.rows`."""
    on_card: pd.DataFrame
    """`on_card.rows`."""


def worked(inputs: Inputs) -> Worked:
    """Read the tables off the records."""
    growing = growth.points(inputs.predicted)
    return Worked(
        papers=paper.compare(inputs.predicted),
        explained=paper.explained(inputs.predicted),
        predictions=prediction.rows(inputs),
        growing=growing,
        slopes=growth.slopes(growing),
        fast=fast.rows(inputs.fast),
        on_card=on_card.rows(inputs.cards, inputs.predicted, inputs.successors),
    )


def paper_size(inputs: Inputs) -> tuple[int, int]:
    """(H, W) in pixels of the image that the paper's memory was predicted for."""
    if inputs.predicted is None:
        return (0, 0)
    return (inputs.predicted.values["height_px"], inputs.predicted.values["width_px"])


def write(
    site: Site, inputs: Inputs, found: Worked, target: Target, shared: Mapping[str, Any]
) -> Path:
    """Write SUITE/memory.html.

    Args:
        target: a run's page below report/, or empty for what is no run of the suite.
        shared: what every page of the suite is given.
    """
    return site.write(
        f"{inputs.suite.suite}/memory.html",
        "memory.html.j2",
        **shared,
        papers=plain_table(found.papers, paper.READABLE, 2),
        explained=plain_table(found.explained, paper.EXPLAINED_READABLE, 3),
        model=paper.model(inputs.predicted),
        paper_size=paper_size(inputs),
        heavier=bool((found.papers.ratio > 1).any()),
        paper_definition=inputs.predicted.values["definition"] if inputs.predicted else "",
        slopes=plain_table(found.slopes, growth.readable(), 1),
        predictions=plain_table(found.predictions, prediction.READABLE, 2, target),
        within=prediction.within(found.predictions),
        fast=plain_table(found.fast, fast.READABLE, 1),
        on_card=plain_table(found.on_card, on_card.READABLE, 4),
        on_card_words=on_card.words(found.on_card),
    )
