"""How far a result would move with other test scenes, and with other seeds: percentile bootstrap
intervals of mIoU, of one run, of one class, and of the difference of every two runs.

A draw takes as many scenes as there are, with replacement, and reads mIoU off the sum of their
confusion matrices, as the result itself is read off the sum of all. Every run of a data set meets
the same draws of scenes, so that two runs are compared scene by scene: a hard scene that comes up
twice is hard for both. Of a model with several seeds a draw takes as many seeds with replacement
and averages over them; two runs of the same trained networks meet the same draws of seeds, others
independent ones.

The interval holds the middle 95 % of 10,000 draws. What it does not cover: `findings.limits`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from bench import metrics
from bench.report.evaluations import alike
from bench.report.load_records import Entry

DRAWS = 10_000
LEVEL = 0.95
"""Share of the draws that lie inside an interval."""
SEED = 0
FEW_SCENES = 10
"""With fewer an interval is too short, which `findings.limits` says."""
Shares = NDArray[np.float64]
"""0..1, or NaN where nothing counts."""
HARDLY = 0.01
"""Of mIoU."""
NO_DIFFERENCE: Final = "no significant difference"
Verdict = Literal["beats", "is beaten by", "no significant difference"]


@dataclass(frozen=True)
class Sample:
    """Confusion matrices of a run on every scene of one split."""

    run: str
    trained: str
    """The networks behind it: runs of the same ones share their draws of seeds."""
    scenes: tuple[str, ...]
    matrices: metrics.Matrix
    """(seeds, scenes, K + 1, K), as `metrics.confusion` counts."""
    classes: tuple[str, ...]
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Interval:
    """A result and the middle 95 % of its draws, 0..1; NaN where nothing counts."""

    value: float
    """Of all scenes, each once; the mean over seeds."""
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """mIoU of one run minus that of another, 0..1, over the same draws of scenes."""

    first: str
    second: str
    value: float
    low: float
    high: float

    @property
    def verdict(self) -> Verdict:
        """One beats the other only where the interval excludes 0."""
        if self.low > 0:
            return "beats"
        return "is beaten by" if self.high < 0 else NO_DIFFERENCE

    @property
    def significant(self) -> bool:
        """Whether the interval excludes 0."""
        return self.verdict != NO_DIFFERENCE

    def turned(self) -> "Difference":
        """The same, `second` minus `first`."""
        return Difference(self.second, self.first, -self.value, -self.high, -self.low)


@dataclass(frozen=True)
class Pairs:
    """The evaluated runs of one data set; those that differ in their seed alone are one."""

    samples: tuple[Sample, ...]
    names: Mapping[str, str]
    """Run -> the sample that it is in."""

    @cached_property
    def found(self) -> dict[tuple[str, str], Difference]:
        """Of every two samples on the same scenes, in the suite's order."""
        return {(one.first, one.second): one for one in differences(self.samples)}

    def between(self, run: str, other: str) -> Difference | None:
        """`run` minus `other`; None where nothing tells them apart but their seed, or they were
        not evaluated on the same scenes."""
        names = self.names.get(run, run), self.names.get(other, other)
        turned = self.found.get(names[::-1])
        return self.found.get(names) or (turned.turned() if turned else None)


def compare(entries: Sequence[Entry]) -> Pairs:
    """The evaluated runs of one data set."""
    samples: list[Sample] = []
    names: dict[str, str] = {}
    for name, same in alike(entry for entry in entries if entry.evaluation):
        own = [of_entry(entry) for entry in same]
        if len(own) > 1 and all(comparable(own[0], one) for one in own):
            names |= {one.run: name for one in own}
            own = [joined(name, " ".join(one.trained for one in own), own)]
        else:
            names |= {one.run: one.run for one in own}
        samples += own
    return Pairs(tuple(samples), names)


def of_entry(entry: Entry) -> Sample:
    """The test scenes of an evaluated run."""
    return sample(entry.name, entry.run.model, entry.evaluation)


def sample(run: str, trained: str, evaluation: Mapping[str, Any], split: str = "test") -> Sample:
    """The scenes of a good `evaluate` record.

    Args:
        trained: the line of `models` that the run is of.
        evaluation: the record's values.

    Raises:
        KeyError: the record has no such split.
    """
    first = evaluation["splits"][split]
    scenes = tuple(sorted(first))
    by_seed = [first, *(more[split] for more in evaluation.get("other_seeds", {}).values())]
    return Sample(
        run=run,
        trained=trained,
        scenes=scenes,
        matrices=np.array([[each[scene] for scene in scenes] for each in by_seed], np.int64),
        classes=tuple(evaluation["classes"]),
        ignored=tuple(evaluation["ignored"]),
    )


def joined(run: str, trained: str, samples: Sequence[Sample]) -> Sample:
    """Runs that differ in their seed alone, as one run with several seeds.

    Raises:
        ValueError: they were not evaluated on the same scenes.
    """
    first = samples[0]
    if not all(comparable(first, other) for other in samples):
        raise ValueError(f"{run}: its seeds were evaluated on different scenes")
    matrices = np.concatenate([one.matrices for one in samples])
    return replace(first, run=run, trained=trained, matrices=matrices)


def comparable(first: Sample, second: Sample) -> bool:
    """Whether two runs were evaluated on the same scenes and classes."""
    names = ("scenes", "classes", "ignored")
    return all(getattr(first, name) == getattr(second, name) for name in names)


def miou(one: Sample) -> float:
    """The result itself: mIoU over all scenes, 0..1, the mean over seeds."""
    return float(_mious(one, one.matrices.sum(1)).mean())


def one_answer(one: Sample) -> float:
    """mIoU on the same scenes of the best single class predicted everywhere, 0..1."""
    counts = one.matrices.sum(-1, keepdims=True)
    says = np.eye(len(one.classes), dtype=counts.dtype)
    return max(miou(replace(one, matrices=counts * answer)) for answer in says)


def excluded(one: Sample, baseline: float | None) -> str:
    """Why a run is not ranked; empty where it is. One that is not above nearest class-mean colour,
    or hardly above one class everywhere, says nothing of its method.

    Args:
        baseline: mIoU of nearest class-mean colour on the same scenes, 0..1; None: unknown.
    """
    found = miou(one)
    if baseline is not None and found <= baseline:
        return "excluded: below baseline"
    return "excluded: one class" if found <= one_answer(one) + HARDLY else ""


def mious(one: Sample) -> Shares:
    """mIoU of every draw, (DRAWS,); the i-th is of the same scenes for every run of a data set."""
    drawn = _mious(one, _drawn_matrices(one))  # (seeds, DRAWS)
    return _weighted(drawn, _drawn_seeds(one))


def interval(one: Sample) -> Interval:
    """mIoU of a run and how far it would move."""
    return Interval(miou(one), *_middle(mious(one)))


def class_intervals(one: Sample) -> dict[str, Interval]:
    """IoU of every class that counts and how far it would move; draws without the class are left
    out."""
    drawn = metrics.iou(_drawn_matrices(one), one.classes, one.ignored)  # (seeds, DRAWS, K)
    whole = metrics.iou(one.matrices.sum(1), one.classes, one.ignored)  # (seeds, K)
    weights = _drawn_seeds(one)
    return {
        name: Interval(
            float(_weighted(whole[:, k], np.full(len(whole), 1 / len(whole)))),
            *_middle(_weighted(drawn[..., k], weights)),
        )
        for k, name in enumerate(one.classes)
        if name not in one.ignored
    }


def difference(first: Sample, second: Sample) -> Difference:
    """How far one run lies above another, and how far that would move.

    Raises:
        ValueError: they were not evaluated on the same scenes.
    """
    if not comparable(first, second):
        raise ValueError(f"{first.run} and {second.run} were evaluated on different scenes")
    return differences([first, second])[0]


def differences(samples: Sequence[Sample]) -> list[Difference]:
    """Every pair of comparable runs, in the order given."""
    known = [(one, miou(one), mious(one)) for one in samples]
    return [
        Difference(a.run, b.run, value_a - value_b, *_middle(drawn_a - drawn_b))
        for (a, value_a, drawn_a), (b, value_b, drawn_b) in combinations(known, 2)
        if comparable(a, b)
    ]


def _mious(one: Sample, matrices: metrics.Matrix) -> Shares:
    return metrics.mious(matrices, one.classes, one.ignored)


def _drawn_matrices(one: Sample) -> metrics.Matrix:
    """(seeds, DRAWS, K + 1, K): the sum over the scenes of every draw."""
    seeds, scenes, rows, columns = one.matrices.shape
    times = _draws(scenes, "scenes").astype(np.float64)  # exact, and far faster than integers
    flat = one.matrices.reshape(seeds, scenes, rows * columns).astype(np.float64)
    summed: metrics.Matrix = np.rint(times @ flat).astype(np.int64)
    return summed.reshape(seeds, DRAWS, rows, columns)


def _drawn_seeds(one: Sample) -> Shares:
    """(seeds, DRAWS): the weight of every seed in every draw."""
    seeds = len(one.matrices)
    return _draws(seeds, "seeds", one.trained).T / seeds


def _draws(number: int, *purpose: str) -> NDArray[np.int64]:
    """(DRAWS, number): how often each of `number` things is taken, as many as there are in all."""
    digest = hashlib.sha256(" ".join(purpose).encode()).digest()
    rng = np.random.default_rng([SEED, int.from_bytes(digest[:8], "little")])
    return rng.multinomial(number, np.full(number, 1 / number), size=DRAWS)


def _weighted(shares: Shares, weights: Shares) -> Shares:
    """Mean over the first axis, of what is known."""
    known = np.where(np.isnan(shares), 0.0, weights)
    total = known.sum(0)
    means: Shares = np.full(total.shape, np.nan)
    np.divide((np.nan_to_num(shares) * known).sum(0), total, out=means, where=total > 0)
    return means


def _middle(draws: Shares) -> tuple[float, float]:
    known = draws[~np.isnan(draws)]
    if not known.size:
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
