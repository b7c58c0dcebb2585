"""Stage `successors`: predicted memory of every ultra-high-resolution method, without a GPU.

Each run of suites/deepglobe-successors.yaml that answers to a published row, and GLNet beside them,
is worked out on fake CUDA tensors at the sizes of both data sets that the papers print memory of;
where a method can do as its released code does, once as meant and once as released."""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench import cli, record
from bench.config import RunConfig, Suite, read_suite
from bench.memory import DEFINITIONS, predict_memory
from bench.method import check_strategy, load, spec_of
from bench.parallel.parallel_map import parallel_map

RESULT = record.RESULTS / "successors.json"


@dataclass(frozen=True)
class Place:
    """Images that papers print memory of."""

    dataset: str
    """As bench/published.csv has it."""
    side_px: int
    classes: int
    ours: str
    """The suite with GLNet's setting for it."""


PLACES = (
    Place("DeepGlobe", 2448, 7, "deepglobe"),
    Place("Inria Aerial", 5000, 2, "inria"),
)
RIVALS = "deepglobe-successors"
"""Their settings in inference are the same for both, but for what a published row is of."""
GLNET = "glnet-collaborative"


def lines(place: Place) -> Iterator[tuple[str, Suite, RunConfig]]:
    """(name, suite, run) of every method, GLNet first; patches go through one at a time."""
    own = read_suite(Path(f"suites/{place.ours}.yaml"))
    glnet = own.runs[GLNET]
    yield GLNET, own, replace(glnet, overrides={**glnet.overrides, "sub_batch": 1})
    rivals = read_suite(Path(f"suites/{RIVALS}.yaml"))
    for name, run in rivals.runs.items():
        if run.published:
            yield name, rivals, run


def cases(place: Place) -> Iterator[tuple[str, Suite, str, RunConfig]]:
    """(name, suite, how it is done, run) of every method, once for each way that it can be done."""
    for name, suite, run in lines(place):
        # GLNet's oddities cost no memory of the device.
        spec = spec_of(run.model, suite.models[run.model], run)
        both = {"as meant": run} if name == GLNET else ways(run, spec)
        for done, one in both.items():
            yield name, suite, done, one


def predict(places: Sequence[Place]) -> list[dict[str, Any]]:
    """Peak memory of every method at every place, once for each way that it can be done."""
    tasks = [(place, *case) for place in places for case in cases(place)]
    return parallel_map(_predicted, tasks, "predict successors", "way")


def _predicted(place: Place, name: str, suite: Suite, done: str, run: RunConfig) -> dict[str, Any]:
    model = suite.models[run.model]
    check_strategy(name, run, model)
    method = load(model.method)
    spec = spec_of(run.model, model, run)
    begun = time.perf_counter()
    size = (place.side_px, place.side_px)
    strategy = method.strategies[run.strategy]
    result = predict_memory(method, strategy, spec, place.classes, size, "cuda", tf32=True)
    return {
        **asdict(result),
        "dataset": place.dataset,
        "side_px": place.side_px,
        "run": name,
        "method": model.method,
        "done": done,
        "strategy": run.strategy,
        "published": run.published,
        "seconds": time.perf_counter() - begun,
    }


def ways(run: RunConfig, spec: Any) -> dict[str, RunConfig]:
    """How a run can be done: as its authors' released code does and as they meant it, where the
    method tells the two apart."""
    if not hasattr(spec, "official"):
        return {"ours": run}
    return {
        done: replace(run, overrides={**run.overrides, "official": official})
        for done, official in (("as meant", False), ("as released", True))
    }


def work(arguments: argparse.Namespace) -> None:
    """Predict the device memory of every ultra-high-resolution method at 2448 x 2448 and
    5000 x 5000 px, without a device."""
    rows = predict(PLACES)
    record.write(
        RESULT,
        record.Record(
            stage="successors",
            name=RIVALS,
            settings={"suites": [RIVALS, *(place.ours for place in PLACES)]},
            values={"definition": DEFINITIONS["predicted"], "rows": rows},
            provenance=record.provenance(),
        ),
    )
    print(RESULT)


if __name__ == "__main__":
    cli.main(work)
