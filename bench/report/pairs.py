"""Every two runs of a data set: how far apart they lie, and whether that is more than chance."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from bench.report import bootstrap, seeds, style
from bench.report.bootstrap import Difference, Sample
from bench.report.load_records import Entry

COLUMNS = ("dataset", "first", "second", "difference", "low", "high", "verdict", "scenes", "seeds")


@dataclass(frozen=True)
class Pairs:
    """The runs of one data set; those that differ in their seed alone are one."""

    samples: tuple[Sample, ...]
    names: Mapping[str, str]
    """Run -> the sample that it is in."""

    @cached_property
    def found(self) -> tuple[Difference, ...]:
        """Of every two samples that were asked the same, in the suite's order."""
        return tuple(bootstrap.differences(self.samples))

    @cached_property
    def _by_names(self) -> dict[tuple[str, str], Difference]:
        ways = [one for pair in self.found for one in (pair, pair.turned())]
        return {(one.first, one.second): one for one in ways}

    def between(self, run: str, other: str) -> Difference | None:
        """`run` minus `other`; None where nothing tells them apart but their seed, or they were
        not evaluated on the same scenes."""
        return self._by_names.get((self.names.get(run, ""), self.names.get(other, "")))


def gathered(entries: Sequence[Entry]) -> Pairs:
    """The evaluated runs of one data set."""
    samples: list[Sample] = []
    names: dict[str, str] = {}
    for name, same in seeds.alike(entry for entry in entries if entry.evaluation):
        own = [bootstrap.sample(one.name, one.run.model, one.evaluation) for one in same]
        if len(own) > 1 and all(bootstrap.comparable(own[0], one) for one in own):
            networks = " ".join(one.trained for one in own)
            samples.append(bootstrap.joined(name, networks, own))
            names |= {one.run: name for one in own}
        else:
            samples += own
            names |= {one.run: one.run for one in own}
    return Pairs(tuple(samples), names)


def table(dataset: str, pairs: Pairs) -> pd.DataFrame:
    """One line a pair, shares 0..1."""
    of = {one.run: one for one in pairs.samples}
    rows = [
        {
            "dataset": dataset,
            "first": one.first,
            "second": one.second,
            "difference": one.value,
            "low": one.low,
            "high": one.high,
            "verdict": f"{one.first} {one.verdict} {one.second}",
            "scenes": len(of[one.first].scenes),
            "seeds": " and ".join(str(len(of[run].matrices)) for run in (one.first, one.second)),
        }
        for one in pairs.found
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def points(difference: float) -> str:
    """A difference of shares as signed per cent points."""
    return style.NOTHING if pd.isna(difference) else f"{100 * difference:+.1f}"


READABLE: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "first": ("run", str),
    "second": ("and", str),
    "difference": ("difference, points", points),
    "low": ("from", points),
    "high": ("to", points),
    "verdict": ("verdict", str),
    "scenes": ("scenes", str),
    "seeds": ("seeds", str),
}
CAPTION = "mIoU of every two runs on test: difference, its interval over scenes, and verdict."


def interval(one: Difference) -> str:
    """`95 % interval +0.5 to +3.7`, in points."""
    return f"{100 * bootstrap.LEVEL:.0f} % interval {points(one.low)} to {points(one.high)}"


def sentence(one: Difference) -> str:
    """Who beats whom, if the data can tell; without a full stop."""
    if one.told:
        winner = one if one.value > 0 else one.turned()
        return (
            f"{winner.first} beats {winner.second} by {100 * winner.value:.1f} points of mIoU "
            f"({interval(winner)})"
        )
    return (
        f"the data cannot tell {one.first} from {one.second}: {points(one.value)} points of mIoU "
        f"({interval(one)})"
    )
