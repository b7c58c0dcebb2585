"""The ultra-high-resolution methods at the settings that papers print memory of, as runs that need
no data set."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.config import read_suite
from bench.memory.prediction import Case
from bench.run import Run, open_run

UHR_METHODS = Path("suites/deepglobe-successors.yaml")
"""Their settings in inference are the same for both data sets, but for what a published row is
of."""
GLNET = "glnet-collaborative"


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


def uhr_cases(place: Place) -> Iterator[Case]:
    """Every ultra-high-resolution method, GLNet first; once as its authors' released code does and
    once as they meant it, where the method distinguishes them."""
    for run in uhr_runs(place):
        # GLNet's quirks cost no memory of the device.
        if run.name == GLNET:
            yield Case(place.dataset, place.side_px, "as meant", run)
        elif not hasattr(run.spec, "official"):
            yield Case(place.dataset, place.side_px, "ours", run)
        else:
            for done, official in (("as meant", False), ("as released", True)):
                yield Case(place.dataset, place.side_px, done, run.varied(official=official))


def uhr_runs(place: Place) -> Iterator[Run]:
    """The run of every ultra-high-resolution method, GLNet first; patches one at a time."""
    own = read_suite(Path(f"suites/{place.ours}.yaml"))
    yield open_run(own, GLNET, {"sub_batch": 1}, place.classes)
    others = read_suite(UHR_METHODS)
    for name, config in others.runs.items():
        if config.published:
            yield open_run(others, name, classes=place.classes)
