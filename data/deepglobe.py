"""DeepGlobe land cover (803 labelled images of 2448 x 2448 px): what it is; fetching it is not
there yet."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from bench.errors import Refusal
from data.dataset import About, Pair

# In the order of the official GLNet code.
CLASSES: tuple[tuple[str, tuple[int, int, int]], ...] = (
    ("unknown", (0, 0, 0)),
    ("urban", (0, 255, 255)),
    ("agriculture", (255, 255, 0)),
    ("rangeland", (255, 0, 255)),
    ("forest", (0, 255, 0)),
    ("water", (0, 0, 255)),
    ("barren", (255, 255, 255)),
)
NOT_YET = Refusal(
    "This version cannot fetch or prepare DeepGlobe yet; nothing was changed. "
    "`cp suites/earthcover.yaml params.yaml` runs on real imagery without an account."
)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Settings:
    """DeepGlobe has one form."""


def about(settings: Settings) -> About:
    """What the data set is, but for its splits and pixels."""
    return About(
        classes=tuple(name for name, _ in CLASSES),
        palette=tuple(colour for _, colour in CLASSES),
        ignored=("unknown",),
        rare=(),
        splits={},
        credit="DeepGlobe 2018 land cover challenge (arXiv 1805.06561).",
    )


def download(settings: Settings, raw: Path) -> None:
    """Refuses."""
    raise NOT_YET


def pairs(settings: Settings, raw: Path) -> Iterator[Pair]:
    """Refuses."""
    raise NOT_YET
