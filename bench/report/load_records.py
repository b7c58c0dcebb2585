"""Which records of the active suite there are; a missing one is a fact to report, not an error."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bench import record
from bench.config import ModelConfig, RunConfig, Suite
from bench.record import Record

PUBLISHED = Path(__file__).resolve().parent.parent / "published.csv"
MB = 2**20
"""The paper read gpustat, whose MB are MiB."""
BASELINE = "colour"
"""The network that any trained one should beat: nearest class-mean colour."""
_WORST_FIRST = ("failed", "oom", "missing", "ok")


@dataclass(frozen=True)
class Entry:
    """One run of the suite and what is known of it."""

    name: str
    run: RunConfig
    model: ModelConfig
    predictions: Path
    """Folder of the labels that it predicted."""
    evaluated: Record | None
    measured: Record | None

    @property
    def network(self) -> str:
        """`unet`, `glnet`, ...: the architecture, whatever it is run with."""
        return str(self.model.spec.get("network", self.model.method.rpartition("/")[2]))

    @property
    def status(self) -> str:
        """The worst of evaluating and measuring: `failed`, `oom`, `missing` or `ok`."""
        stages = (self.evaluated, self.measured)
        return min((r.status if r else "missing" for r in stages), key=_WORST_FIRST.index)

    @property
    def reason(self) -> str:
        """Why the status is not `ok`, stage by stage; empty if it is."""
        stages = (("evaluate", self.evaluated), ("measure", self.measured))
        return "; ".join(
            f"{stage}: {r.reason or r.status if r else 'no record'}"
            for stage, r in stages
            if r is None or r.status != "ok"
        )

    @property
    def evaluation(self) -> Mapping[str, Any]:
        """Values of a good `evaluate` record, else empty."""
        return self.evaluated.values if self.evaluated and self.evaluated.status == "ok" else {}

    @property
    def measurement(self) -> Mapping[str, Any]:
        """Values of a good `measure` record, else empty."""
        return self.measured.values if self.measured and self.measured.status == "ok" else {}


@dataclass(frozen=True)
class Inputs:
    """Everything that the report is made from, besides the images."""

    suite: Suite
    entries: tuple[Entry, ...]
    """In the order of params.yaml."""
    trainings: Mapping[str, Record | None]
    """By model."""
    predicted: Record | None
    """Device memory at the paper's size."""
    steps: Record | None = None
    """Memory of training steps."""
    successors: Record | None = None
    """Device memory of the ultra-high-resolution methods at the papers' sizes."""
    fast: Record | None = None
    """Both paths of GLNet over one image."""
    cards: tuple[Record, ...] = ()
    """What published settings took on real cards."""

    @property
    def datasets(self) -> list[str]:
        """Names of the data sets that a run uses, in the order of the runs."""
        return list(dict.fromkeys(entry.model.dataset for entry in self.entries))

    def records(self) -> Iterator[Record]:
        """Every record that there is."""
        for entry in self.entries:
            yield from (r for r in (entry.evaluated, entry.measured) if r)
        yield from (
            r
            for r in (*self.trainings.values(), self.predicted, self.steps, self.fast, *self.cards)
            if r
        )


def load_records(suite: Suite) -> Inputs:
    """Read the records of a suite's runs and models; files of other suites are not looked at.

    Raises:
        UserError: a record is there but damaged.
    """
    return Inputs(
        suite=suite,
        entries=tuple(
            Entry(
                name=name,
                run=run,
                model=suite.models[run.model],
                predictions=record.RESULTS / suite.suite / "predictions" / name,
                evaluated=_read(record.path_of(suite.suite, "evaluate", name)),
                measured=_read(record.path_of(suite.suite, "measure", name, suite.machine)),
            )
            for name, run in suite.runs.items()
        ),
        trainings={
            name: _read(record.path_of(suite.suite, "train", name)) for name in suite.models
        },
        predicted=_read(record.RESULTS / "predict.json"),
        steps=_read(record.path_of(suite.suite, "steps", suite.machine)),
        successors=_read(record.RESULTS / "successors.json"),
        fast=_read(record.RESULTS / "fast" / f"{suite.machine}.json"),
        cards=tuple(record.read(one) for one in sorted((record.RESULTS / "card").glob("*.json"))),
    )


def published(path: Path = PUBLISHED) -> pd.DataFrame:
    """Published numbers that were seen in a source; `recalled` ones are never shown as data."""
    frame = pd.read_csv(path)
    return frame[frame.confidence != "recalled"].reset_index(drop=True)


def _read(path: Path) -> Record | None:
    return record.read(path) if path.is_file() else None
