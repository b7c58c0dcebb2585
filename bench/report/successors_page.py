"""The page of all ultra-high-resolution methods under one protocol."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bench.report import successors, successors_memory
from bench.report.load_records import Inputs
from bench.report.page import plain_table
from bench.report.site import Site, Target
from bench.report.table import Columns


@dataclass(frozen=True)
class Compared:
    """Its tables, in raw values."""

    runs: pd.DataFrame
    """`successors.runs`."""
    ranking: pd.DataFrame
    """`successors.ranking`."""
    released: pd.DataFrame
    """`successors.released`."""
    memory: pd.DataFrame
    """`successors_memory.memory`."""
    unspecified: pd.DataFrame
    """`successors.unspecified`."""

    def files(self) -> Mapping[str, tuple[pd.DataFrame, Columns, str]]:
        """Name of a file -> table, how it reads, and caption."""
        return {
            "successors": (self.runs, successors.RUNS, "Methods under one protocol."),
            "ranking": (self.ranking, successors.RANKING, "Published rankings, and ours."),
            "released": (self.released, successors.RELEASED, "As released and as meant."),
            "successors_memory": (
                self.memory,
                successors_memory.MEMORY,
                "Predicted memory of all methods.",
            ),
            "unspecified": (
                self.unspecified,
                successors.UNSPECIFIED_COLUMNS,
                "Published, not run again.",
            ),
        }


def compared(inputs: Inputs) -> Compared:
    """Read the tables off the records."""
    return Compared(
        runs=successors.runs(inputs.entries),
        ranking=successors.ranking(inputs.entries),
        released=successors.released(inputs.entries),
        memory=successors_memory.memory(inputs.successors),
        unspecified=successors.unspecified(),
    )


def write(
    site: Site, inputs: Inputs, found: Compared, target: Target, shared: Mapping[str, Any]
) -> Path:
    """Write SUITE/successors.html.

    Args:
        target: a run's page below report/, or empty for what is no run of the suite.
        shared: what every page of the suite is given.
    """
    return site.write(
        f"{inputs.suite.suite}/successors.html",
        "successors.html.j2",
        **shared,
        sentences=successors.sentences(found.ranking, found.released, found.memory),
        runs=plain_table(found.runs, successors.RUNS, 4, target),
        ranking=plain_table(found.ranking, successors.RANKING, 2),
        released=plain_table(found.released, successors.RELEASED, 2),
        memory=plain_table(found.memory, successors_memory.MEMORY, 3, target),
        unspecified=plain_table(found.unspecified, successors.UNSPECIFIED_COLUMNS, 1),
        limits=successors.limits(inputs.entries),
        memory_definition=inputs.successors.values["definition"] if inputs.successors else "",
    )
