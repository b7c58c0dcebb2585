"""The ultra-high-resolution methods at the settings for which papers print memory, as runs that
need no data set."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.config import read_suite
from bench.memory.runs import PREDICTED, Case, predict_case
from bench.run import Run, open_run

__all__ = [
    "PLACES",
    "PREDICTED",
    "UHR_METHODS",
    "Case",
    "Place",
    "predict_case",
    "uhr_cases",
    "uhr_runs",
]
UHR_METHODS = Path("suites/deepglobe-successors.yaml")
"""Their settings in inference are the same for both data sets."""
GLNET = "glnet-collaborative"


@dataclass(frozen=True)
class Place:
    """A data set for whose images papers print memory."""

    dataset: str
    """As bench/published.csv has it."""
    side_px: int
    classes: int
    ours: str
    """The suite that has GLNet's settings for it."""


PLACES = (
    Place("DeepGlobe", 2448, 7, "deepglobe"),
    Place("Inria Aerial", 5000, 2, "inria"),
)


SAME_MEMORY = ("glnet", "baselines/cascadepsp", "baselines/pointrend")
"""Methods whose quirks do not change the device's memory: one row is enough."""


def uhr_cases(place: Place) -> Iterator[Case]:
    """Every ultra-high-resolution method, GLNet first; corrected and as released, where the method
    distinguishes the two."""
    for run in uhr_runs(place):
        if run.model.config.method in SAME_MEMORY or not hasattr(run.spec, "official"):
            yield Case(place.dataset, place.side_px, "corrected", run)
            continue
        for done, official in (("corrected", False), ("as released", True)):
            yield Case(place.dataset, place.side_px, done, run.varied(official=official))


def uhr_runs(place: Place) -> Iterator[Run]:
    """The run of every ultra-high-resolution method, GLNet first, with one patch at a time."""
    own = read_suite(Path(f"suites/{place.ours}.yaml"))
    yield open_run(own, GLNET, {"sub_batch": 1}, place.classes)
    others = read_suite(UHR_METHODS)
    for name, config in others.runs.items():
        if config.published:
            yield open_run(others, name, classes=place.classes)
