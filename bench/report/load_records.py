"""Which records of a suite there are; a missing one is a fact to report, not an error."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from bench import record
from bench.config import ModelConfig, RunConfig, Suite, open_source
from bench.record import BENCHMARK as BENCHMARK
from bench.record import Record as Record
from bench.report.style import CREDITS

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
    trained: Record | None = None
    """Of its model."""

    @property
    def dataset(self) -> str:
        """Its name."""
        return self.model.dataset

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
            f"{stage}: {r.reason or r.status if r else f'no record of benchmark version {BENCHMARK}'}"
            for stage, r in stages
            if r is None or r.status != "ok"
        )

    @property
    def outdated(self) -> str:
        """Which records were made with other settings than the suite has, or with weights or data of
        another training than the one that is recorded, stage by stage; empty if none was."""
        found = []
        for made in (self.trained, self.evaluated, self.measured):
            if made and (why := self._made_otherwise(made)):
                found.append(f"{made.stage}: its record is out of date ({why}), run `dvc repro`")
        return "; ".join(found)

    def _made_otherwise(self, made: Record) -> str:
        if self.trained and made is not self.trained:
            there = {**self.trained.values, **self.trained.provenance}
            for key, what in (("checkpoint_sha256", "weights"), ("data_sha256", "data")):
                known = made.provenance.get(key)
                if known and known != there.get(key, known):
                    return f"made with other {what} than train has recorded"
        return record.made_otherwise(made, self.model, self.run)

    @property
    def evaluation(self) -> Mapping[str, Any]:
        """Values of a good `evaluate` record, else empty, as for a run that was not trained."""
        return values(self.evaluated) if self.run.trained else {}

    @property
    def measurement(self) -> Mapping[str, Any]:
        """Values of a good `measure` record, else empty."""
        return values(self.measured)

    @property
    def meters(self) -> Mapping[str, Any]:
        """Meter -> what it says, of a good `measure` record."""
        found: Mapping[str, Any] = self.measurement.get("meters", {})
        return found


@dataclass(frozen=True)
class Inputs:
    """Everything that the report is made from, besides the images."""

    suite: Suite
    entries: tuple[Entry, ...]
    """In the suite's order."""
    trainings: Mapping[str, Record | None]
    """By model."""
    predicted: Record | None
    """Device memory at the paper's size."""
    steps: Record | None = None
    """Memory of training steps."""
    uhr_methods: Record | None = None
    """Device memory of the ultra-high-resolution methods at the papers' sizes."""
    collapsed_head: Record | None = None
    """GLNet with both heads over one image."""
    gpus: tuple[Record, ...] = ()
    """What published settings took on real GPUs."""
    estimates: Record | None = None
    """Networks of other projects: their memory, and what several tools predict."""

    sub_batch: Record | None = None
    """Latency and memory against the number of patches at once."""

    @property
    def datasets(self) -> list[str]:
        """Names of the data sets that a run uses, in the order of the runs."""
        return list(dict.fromkeys(entry.dataset for entry in self.entries))

    @property
    def missing(self) -> list[str]:
        """What has no record."""
        found = [entry.name for entry in self.entries if not (entry.evaluated and entry.measured)]
        found += [name for name, training in self.trainings.items() if not training]
        shared = {"predict": self.predicted, "successors": self.uhr_methods}
        return found + [name for name, one in shared.items() if not one]

    def about(self, dataset: str) -> Any:
        """The `About` of a data set of the suite, as its source describes it."""
        source, settings, _ = open_source(self.suite, dataset)
        return source.about(settings)

    def records(self) -> Iterator[Record]:
        """Every record that there is."""
        found = [one for entry in self.entries for one in (entry.evaluated, entry.measured)]
        found += [*self.trainings.values(), self.predicted, self.steps, self.collapsed_head]
        found += [self.estimates, self.sub_batch]
        yield from (one for one in (*found, *self.gpus) if one)


def load_records(suite: Suite) -> Inputs:
    """Read the records of a suite's runs and models; those of other suites, and of another version of
    the benchmark, are left out.

    Raises:
        UserError: a record is there but damaged.
    """
    name, machine = suite.suite, suite.machine
    trainings = {one: _read(record.path_of(name, "train", one)) for one in suite.models}
    return Inputs(
        suite=suite,
        entries=tuple(
            Entry(
                name=run,
                run=config,
                model=suite.models[config.model],
                predictions=record.RESULTS / name / "predictions" / run,
                evaluated=_read(record.path_of(name, "evaluate", run)),
                measured=_read(record.path_of(name, "measure", run, machine)),
                trained=trainings[config.model],
            )
            for run, config in suite.runs.items()
        ),
        trainings=trainings,
        predicted=_read(record.RESULTS / "predict.json"),
        steps=_read(record.path_of(name, "steps", machine)),
        uhr_methods=_read(record.RESULTS / "successors.json"),
        collapsed_head=_read(record.RESULTS / "fast" / f"{machine}.json"),
        gpus=tuple(filter(None, map(_read, sorted((record.RESULTS / "card").glob("*.json"))))),
        estimates=_read(record.RESULTS / "estimates" / f"{machine}.json"),
        sub_batch=_read(record.RESULTS / "sub_batch" / f"{machine}.json"),
    )


def method_name(method: str) -> str:
    """The last part of a method's folder; of `baselines`, as older records say, `generic`."""
    return method.rpartition("/")[2].replace("baselines", "generic")


def values(found: Record | None) -> Mapping[str, Any]:
    """Of a good record, else empty."""
    return found.values if found and found.status == "ok" else {}


def median(values: Sequence[float] | None) -> float | None:
    """None without values."""
    return statistics.median(values) if values else None


@cache
def published(path: Path = PUBLISHED) -> pd.DataFrame:
    """Published numbers that were seen in a source, with `key` METHOD / inference, `miou` 0..1 and
    `bytes`; `recalled` ones are never shown as data."""
    frame = pd.read_csv(path)
    frame = frame[frame.confidence != "recalled"].reset_index(drop=True)
    return frame.assign(
        key=frame.method + " / " + frame.inference,
        miou=frame.miou_percent / 100,
        bytes=(frame.memory_mb * MB).astype("Int64"),
    )


@cache
def published_rows() -> dict[Any, dict[Any, Any]]:
    """METHOD / inference -> the published row of that key, under names for tables of our runs."""
    names = ["dataset", "confidence", "miou", "bytes", "fps"]
    rows = published().set_index("key")[names].add_prefix("published_")
    rows["confidence"] = rows.published_confidence
    return rows.to_dict("index")


def published_key(method: str, strategy: str) -> str:
    """The row that the papers of an ultra-high-resolution method print of DeepGlobe, or empty."""
    known = CREDITS["methods"].get(method_name(method), {}).get("published", {})
    return str(known.get(strategy, ""))


def _read(path: Path) -> Record | None:
    found = record.read(path) if path.is_file() else None
    return found if found and found.benchmark == BENCHMARK else None
