"""Every two runs of a data set: how far apart they lie, and whether that is more than chance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from bench.report import bootstrap, seeds
from bench.report.bootstrap import Difference, Sample
from bench.report.load_records import Entry
from bench.report.section import Section, percent_points, section, table


@dataclass(frozen=True)
class Pairs:
    """The runs of one data set; those that differ in their seed alone are one."""

    samples: tuple[Sample, ...]
    names: Mapping[str, str]
    """Run -> the sample that it is in."""

    @cached_property
    def found(self) -> dict[tuple[str, str], Difference]:
        """Of every two samples on the same scenes, in the suite's order."""
        return {(one.first, one.second): one for one in bootstrap.differences(self.samples)}

    def between(self, run: str, other: str) -> Difference | None:
        """`run` minus `other`; None where nothing tells them apart but their seed, or they were
        not evaluated on the same scenes."""
        names = self.names.get(run, ""), self.names.get(other, "")
        turned = self.found.get(names[::-1])
        return self.found.get(names) or (turned.turned() if turned else None)


def compare(entries: Sequence[Entry]) -> Pairs:
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


def pairs_section(by_dataset: Mapping[str, Pairs]) -> Section:
    """One line a pair, shares 0..1."""
    rows = []
    for dataset, pairs in by_dataset.items():
        of = {one.run: one.matrices for one in pairs.samples}
        rows += [
            {
                "dataset": dataset,
                "first": first,
                "second": second,
                "difference": one.value,
                "low": one.low,
                "high": one.high,
                "verdict": f"{first} {one.verdict} {second}",
                "scenes": of[first].shape[1],
                "seeds": f"{len(of[first])} and {len(of[second])}",
            }
            for (first, second), one in pairs.found.items()
        ]
    samples = [one for pairs in by_dataset.values() for one in pairs.samples]
    return section(
        "pairs",
        rows=table(rows, "dataset first second difference low high verdict scenes seeds"),
        fill={"limits": bootstrap.limits(samples)},
    )


def sentence(one: Difference) -> str:
    """Which run is better, if the data show it; without a full stop."""
    if not one.significant:
        return (
            f"the data show no difference between {one.first} and {one.second}: "
            f"{percent_points(one.value)} points of mIoU ({_interval(one)})"
        )
    better = one if one.value > 0 else one.turned()
    return (
        f"{better.first} beats {better.second} by {100 * better.value:.1f} points of mIoU "
        f"({_interval(better)})"
    )


def _interval(one: Difference) -> str:
    """In points."""
    low, high = percent_points(one.low), percent_points(one.high)
    return f"{100 * bootstrap.LEVEL:.0f} % CI {low} to {high}"
