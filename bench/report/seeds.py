"""Runs that differ in their seed alone, as one: their mean, and how far apart they lie; beside the
ceilings that a drawn data set states."""

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from typing import Any

import pandas as pd

from bench.report import style
from bench.report.load_records import Entry

ONE_VIEW = ("global", "local")
"""Strategies of one branch alone, to which nothing is lent."""
CHANCE = 0.02
"""mIoU by which two trainings of one model may well differ."""
STUDENT = {
    2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262
}  # fmt: skip
"""Two-sided 95 % quantiles of Student's t by number of values; of more than ten values the last,
which is a little too wide."""
ADDITIVE = (
    "That is no accident of training: behind the encoders GLNet is affine, without an activation "
    "in its FPNs or its aggregation, so that what is lent can only be added to a branch's own "
    "evidence, which the aggregation does as well (docs/mechanism.md)."
)
READABLE: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "runs": ("runs", str),
    "strategy": ("strategy", str),
    "maps are lent": ("maps are lent", str),
    "seeds": ("seeds", str),
    "mean": ("mean mIoU %", style.percent),
    "from": ("from", style.percent),
    "to": ("to", style.percent),
    "lowest": ("lowest", style.percent),
    "highest": ("highest", style.percent),
}


@dataclass(frozen=True)
class Group:
    """Runs of one setting with several seeds."""

    name: str
    strategy: str
    network: str
    feature_sharing: bool
    """Whether branches lend each other maps, or their fused maps meet in the aggregation alone."""
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
        """95 % interval of that mean on these very scenes, by Student's t: where the mean of many
        more seeds would lie, as far as so few can say."""
        t = STUDENT[min(len(self.mious), max(STUDENT))]
        half = t * statistics.stdev(self.mious) / math.sqrt(len(self.mious))
        return self.mean - half, self.mean + half


_LENT = {True: "yes", False: "no", None: style.NOTHING}


def groups(entries: Sequence[Entry], mious: Mapping[str, Sequence[float]]) -> list[Group]:
    """The groups of more than one evaluated seed, in the suite's order.

    Args:
        mious: 0..1 by run, one a seed; runs without any are left out.
    """
    known = [entry for entry in entries if mious.get(entry.name)]
    return [
        Group(
            name=name,
            strategy=same[0].run.strategy,
            network=same[0].network,
            feature_sharing=same[0].model.spec.get("sharing") != "none",
            mious=tuple(miou for entry in same for miou in mious[entry.name]),
            runs=tuple(entry.name for entry in same),
        )
        for name, same in alike(known)
        if len(same) > 1 or len(same[0].model.trainings) > 1
    ]


def alike(entries: Iterable[Entry]) -> list[tuple[str, list[Entry]]]:
    """(what their names share, runs that differ in their seed alone), in the suite's order."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        model = replace(entry.model, seed=0, seeds=None)
        setting = [asdict(model), entry.run.strategy, entry.run.overrides]
        key = json.dumps(setting, sort_keys=True)
        lines = found.setdefault(key, [])
        if any(_seeds(entry) & _seeds(other) for other in lines):  # the very same run, once more
            lines = found.setdefault(f"{key} {entry.name}", [])
        lines.append(entry)
    named: dict[str, list[Entry]] = {}
    for same in found.values():
        names = [entry.name for entry in same]
        common = _common(names)
        named[common if common not in named else ", ".join(names)] = same
    return list(named.items())


def _seeds(entry: Entry) -> set[int]:
    return {one.seed for one in entry.model.trainings}


def ceilings(entries: Iterable[Entry]) -> dict[str, float]:
    """What the data set of these runs says that cannot be passed: mIoU 0..1 by what limits it."""
    for entry in entries:
        if entry.evaluation:
            return dict(entry.evaluation.get("ceilings", {}))
    return {}


def table(found: Sequence[Group]) -> pd.DataFrame:
    """One line a group, shares 0..1."""
    return pd.DataFrame(
        {
            "runs": group.name,
            "strategy": group.strategy,
            "maps are lent": _LENT[None if group.strategy in ONE_VIEW else group.feature_sharing],
            "seeds": len(group.mious),
            "mean": group.mean,
            "from": group.interval[0],
            "to": group.interval[1],
            "lowest": min(group.mious),
            "highest": max(group.mious),
        }
        for group in found
    )


def sentences(found: Sequence[Group], limits: Mapping[str, float]) -> list[str]:
    """What the groups say of GLNet's mechanism, worked out from the numbers."""
    own = [group for group in found if group.network == "glnet"]
    single = [group for group in own if group.strategy in ONE_VIEW]
    both = [group for group in own if group.strategy not in ONE_VIEW and group.feature_sharing]
    said = []
    for group in both:
        said.append(f"{group.name}: {_points(group.mean)} % mIoU, mean of {len(group.mious)} seeds")
        for one in single:
            said[-1] += f"; {_apart(group.mean - one.mean)} {one.name}"
        said[-1] += "."
        passed = [name for name, limit in limits.items() if group.mean > limit]
        if passed:
            said.append(f"{group.name} passes the ceiling of: {', '.join(passed)}.")
    for group in both:
        for other in own:
            if other.strategy == group.strategy and not other.feature_sharing:
                gain = group.mean - other.mean
                said.append(
                    f"With sharing switched off (the aggregation alone, {other.name}) "
                    f"{group.strategy} comes to {_points(other.mean)} %: what is lent "
                    + (f"adds {_points(gain)} points." if gain > 0 else "adds nothing.")
                )
                if gain < CHANCE:
                    said[-1] += " " + ADDITIVE
    return said


def _common(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    shared = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    start = "".join(letters[0] for letters in shared)
    return start.rstrip("-_. ").removesuffix("seed").rstrip("-_. ") or names[0]


def _points(share: float) -> str:
    return style.percent(share)


def _apart(difference: float) -> str:
    side = "above" if difference >= 0 else "below"
    return f"{_points(abs(difference))} points {side}"
