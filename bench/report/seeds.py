"""Runs that differ only in their seed, as one: their mean, and how far apart they lie."""

import json
import math
import os.path
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from bench.report.load_records import Entry

ONE_VIEW = ("global", "local")
"""Strategies of one branch alone, without feature sharing."""
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Two-sided 95 % quantiles of Student's t for 2, 3, ... 10 values; of more than ten values the
last, which is a little too wide."""


@dataclass(frozen=True)
class Group:
    """Runs of one setting with several seeds."""

    name: str
    strategy: str
    network: str
    feature_sharing: bool
    """Whether branches share features, or their fused maps meet in the aggregation alone."""
    mious: tuple[float, ...]
    """0..1, one a seed."""
    runs: tuple[str, ...] = ()
    """Their names."""

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return sum(self.mious) / len(self.mious)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % CI of that mean on these very scenes, by Student's t."""
        t = STUDENT[min(len(self.mious) - 2, len(STUDENT) - 1)]
        half = t * statistics.stdev(self.mious) / math.sqrt(len(self.mious))
        return self.mean - half, self.mean + half


def groups(entries: Sequence[Entry], mious: Mapping[str, Sequence[float]]) -> list[Group]:
    """The groups of more than one evaluated seed, in the suite's order.

    Args:
        mious: 0..1 by run, one a seed; runs without any are left out.
    """
    return [
        Group(
            name=name,
            strategy=same[0].run.strategy,
            network=same[0].network,
            feature_sharing=same[0].model.spec.get("sharing") != "none",
            mious=tuple(miou for entry in same for miou in mious[entry.name]),
            runs=tuple(entry.name for entry in same),
        )
        for name, same in alike(entry for entry in entries if mious.get(entry.name))
        if len(same) > 1 or len(same[0].model.trainings) > 1
    ]


def alike(entries: Iterable[Entry]) -> list[tuple[str, list[Entry]]]:
    """(what their names share, runs that differ only in their seed), in the suite's order."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        model = replace(entry.model, seed=0, seeds=None)
        setting = [asdict(model), entry.run.strategy, entry.run.overrides]
        key = json.dumps(setting, sort_keys=True)
        if any(_seeds(entry) & _seeds(other) for other in found.get(key, ())):  # the same run again
            key = f"{key} {entry.name}"
        found.setdefault(key, []).append(entry)
    named: dict[str, list[Entry]] = {}
    for same in found.values():
        names = [entry.name for entry in same]
        common = _common(names)
        named[common if common not in named else ", ".join(names)] = same
    return list(named.items())


def _seeds(entry: Entry) -> set[int]:
    return {one.seed for one in entry.model.trainings}


def _common(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    start = os.path.commonprefix(names)  # noqa: RUF071 - of letters
    return start.rstrip("-_. ").removesuffix("seed").rstrip("-_. ") or names[0]
