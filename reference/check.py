"""One comparison with golden data, the collector of those of a case, and how they are printed."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bench.metrics import confusion
from reference.golden import Golden, fingerprint

FLOATS = ("float32", "float64")
RELATIVE = 1e-5
"""Of an array's largest magnitude: what float32 supports over so many layers."""
SUMS = ("sum", "abssum")
CANCELLING = ("mean", "sum")
TIMES_NOISE = 3
"""So many times the float32 noise of a released code are allowed."""
LEAST = 2.0**-22
"""No less is allowed: two roundings in float32, for sums in another order, as on another processor."""
PRINTED = 1e-9
"""Numbers of the tables have ten digits."""
SMALLEST = 1e-6
"""A gradient's norm below this share of the largest is noise, in some golden data."""


@dataclass(frozen=True)
class Check:
    """One comparison."""

    case: str
    mode: str
    """What of the method is run: a strategy, a phase, a way to normalise."""
    dtype: str
    quantity: str
    difference: float
    tolerance: float
    """Both in the quantity's own unit, or as a share of it where the quantity says so."""

    @property
    def ok(self) -> bool:
        """Whether it holds; a difference that is not a number does not."""
        return self.difference <= self.tolerance

    @property
    def share(self) -> float:
        """The difference in units of its tolerance."""
        if self.tolerance:
            return self.difference / self.tolerance
        return float("inf") if self.difference else 0.0


@dataclass(frozen=True)
class Comparison:
    """Collects the comparisons of one case in one mode and precision."""

    case: str
    mode: str
    dtype: str
    checks: list[Check] = field(default_factory=list)

    def check(self, quantity: str, difference: float, tolerance: float) -> None:
        """A difference and what is allowed of it."""
        found = Check(self.case, self.mode, self.dtype, quantity, float(difference), tolerance)
        self.checks.append(found)

    def close(self, quantity: str, ours: float, theirs: float, tolerance: float) -> None:
        """Two numbers, by their difference as a share of the second."""
        self.check(f"{quantity} (share)", abs(ours - theirs) / (abs(theirs) or 1), tolerance)

    def vector(
        self, what: str, ours: Tensor, norm: float, total: float | None, tolerance: float
    ) -> None:
        """The norm of a gradient or a statistic; and its sum, which cancels, as a share of the largest
        sum that this norm allows."""
        self.close(f"norm of {what}", float(ours.norm()), norm, tolerance)
        if total is not None:
            scale = norm * ours.numel() ** 0.5
            self.check(f"sum of {what} (share)", abs(float(ours.sum()) - total) / scale, tolerance)

    def gradients(
        self,
        found: Mapping[str, Tensor],
        expected: Mapping[str, Sequence[Any]],
        tolerance: float,
        smallest: float = 0.0,
    ) -> None:
        """As `vector`, of the parameters that both have.

        Args:
            expected: norm and sum; the sum may be None.
            smallest: norms below this share of the largest are left out.
        """
        least = smallest * max((norm for norm, _ in expected.values()), default=0)
        for key, (norm, total) in expected.items():
            if key in found and norm >= least:
                self.vector(f"gradient of {key}", found[key], norm, total, tolerance)

    def complete(self, found: Mapping[str, object], *expected: Iterable[str]) -> None:
        """Whether every map that the golden data has was computed."""
        missing = set().union(*expected) - found.keys()
        self.equal("maps that are not computed here", sorted(missing), [])

    def equal(self, quantity: str, ours: object, theirs: object) -> None:
        """Two things that must be the same."""
        self.check(f"{quantity} (equal)", float(ours != theirs), 0)

    def bytes_equal(self, found: Mapping[str, NDArray[Any]], expected: Mapping[str, Any]) -> None:
        """Arrays whose SHA-256 the golden data has; the others are left out."""
        for name, array in found.items():
            if name in expected:
                self.equal(name, fingerprint(array), expected[name])

    def losses(self, ours: Sequence[float], theirs: Sequence[float], tolerance: float) -> None:
        """The losses of a step, in the order in which they are walked back."""
        self.equal("number of losses", len(ours), len(theirs))
        for number, pair in enumerate(zip(ours, theirs, strict=False)):
            self.close(f"loss {number}", *pair, tolerance)

    def map(
        self,
        quantity: str,
        ours: NDArray[Any],
        stats: Mapping[str, Any] | None,
        kept: NDArray[Any] | None,
        tolerance: float = RELATIVE,
    ) -> None:
        """A whole map, against statistics of all of it and the part that the golden data keeps: the
        largest difference as a share of the largest magnitude."""
        if stats and "shape" in stats:
            self.statistics(quantity, ours, stats, tolerance)
        if kept is not None:
            largest = (stats or {}).get("absmax") or float(np.abs(kept).max()) or 1.0
            apart = difference(ours, kept, tolerance * largest)
            self.check(f"{quantity} (share)", apart / largest, tolerance)

    def statistics(
        self,
        quantity: str,
        ours: NDArray[Any],
        theirs: Mapping[str, Any],
        tolerance: float = RELATIVE,
    ) -> None:
        """Shape, mean, deviation, largest magnitude and sums of a whole array: those that cancel as
        shares of the largest magnitude, the others of themselves."""
        if "shape" in theirs:
            self.equal(f"{quantity}, shape", list(ours.shape), list(theirs["shape"]))
        values = ours.astype(np.float64)
        magnitudes = np.abs(values)
        found = {
            "mean": values.mean(),
            "std": values.std(),
            "absmax": magnitudes.max(),
            "sum": values.mean(),
            "abssum": magnitudes.mean(),
        }
        for name, value in found.items():
            if name in theirs:
                expected = theirs[name] / (values.size if name in SUMS else 1)
                scale = abs(theirs["absmax"] if name in CANCELLING else expected) or 1.0
                self.check(f"{quantity}, {name} of all", abs(value - expected) / scale, tolerance)

    def labels(
        self,
        quantity: str,
        scores: NDArray[Any],
        theirs: NDArray[Any] | None = None,
        sha256: str = "",
        counts: Sequence[int] = (),
        tie: float | None = None,
    ) -> NDArray[np.uint8]:
        """The best class of each pixel of scores (K, H, W), against a whole map or its SHA-256 and
        the pixels a class; where the two best are no more than `tie` apart, either is right."""
        found: NDArray[np.uint8] = scores.argmax(0).astype(np.uint8)
        tied = ties(scores, tie)
        if theirs is not None:
            wrong = int(((found != theirs) & ~tied).sum())
        elif fingerprint(found) == sha256:
            wrong = 0
        else:
            ours = np.bincount(found.ravel(), minlength=len(scores))
            moved = np.abs(ours - np.array(counts or 0))
            wrong = max(int(moved.sum()) // 2 - int(tied.sum()), 0 if tied.any() and counts else 1)
        self.check(f"{quantity} (pixels that no tie explains)", float(wrong), 0)
        return found

    def confusion(
        self,
        quantity: str,
        truth: NDArray[np.uint8],
        labels: NDArray[np.uint8],
        theirs: Sequence[Sequence[int]],
        allowed: float,
    ) -> None:
        """The confusion matrix (truth x prediction), by the pixels in other cells."""
        ours = confusion(truth, labels, len(theirs))[:-1]
        self.check(f"{quantity} (pixels)", np.abs(ours - np.array(theirs)).sum() / 2, allowed)


@dataclass(frozen=True)
class Method:
    """What one method contributes to the comparison."""

    marks: tuple[str, ...]
    """Keys of a table, or of its `config`, that only this method's golden data has."""
    modes: Callable[[Golden], list[str]]
    """What is run of a case or step: strategies, phases, ways to normalise."""
    check: Callable[[Golden, str, Comparison], None]
    """(case or step, mode, collector): make all comparisons, in the collector's precision."""

    def fits(self, goldens: list[Golden]) -> bool:
        """Whether these tables are of this method."""
        return any(
            mark in table
            for one in goldens
            for table in (one.table, one.config)
            for mark in self.marks
        )


def allowed(noise: float) -> float:
    """The tolerance where the float32 noise is this."""
    return max(TIMES_NOISE * noise, LEAST)


def difference(whole: NDArray[Any], kept: NDArray[Any], enough: float) -> float:
    """The largest difference between every so manieth value of an array, and what was kept of it.

    Golden data keeps regular samples, without leading sides of 1. How far they are apart along a
    side follows from the two lengths, or nearly so: of the steps that fit, the first whose
    difference is `enough` counts, else the best. Other shapes are infinitely different.
    """
    while whole.ndim > kept.ndim and len(whole) == 1:
        whole = whole[0]
    if whole.ndim != kept.ndim:
        whole, kept = whole.squeeze(), kept.squeeze()
    least = float("inf")
    if whole.ndim == kept.ndim:
        steps = (
            [step for step in range(1, max(n, 1) + 1) if -(-n // step) == m]
            for n, m in zip(whole.shape, kept.shape, strict=True)
        )
        for chosen in itertools.product(*steps):
            part = whole[tuple(slice(None, None, step) for step in chosen)]
            least = min(least, float(np.abs(part.astype(np.float64) - kept).max(initial=0)))
            if least <= enough:
                break
    return least


def ties(scores: NDArray[Any], apart: float | None = None) -> NDArray[np.bool_]:
    """Pixels of scores (K, H, W) whose two best are at most `apart`; None: twice what float32
    supports."""
    if len(scores) < 2:
        return np.zeros(scores.shape[1:], bool)
    best = np.partition(scores, -2, 0)[-2:]
    found: NDArray[np.bool_] = best[1] - best[0] <= (
        2 * RELATIVE * float(np.abs(scores).max()) if apart is None else apart
    )
    return found


HEADING = (
    f"{'case':<13} {'mode':<15} precision compared failed  "
    "largest difference, in units of its tolerance"
)


def rows(done: Comparison) -> list[str]:
    """A line with what comes nearest to its tolerance, and one for each comparison that fails."""
    worst = max(done.checks, key=lambda check: check.share, default=None)
    failed = [check for check in done.checks if not check.ok]
    nearest = f"{worst.share:.2f} {worst.quantity}" if worst else "nothing"
    counts = f"{len(done.checks):>8} {len(failed):>6}"
    return [f"{done.case:<13} {done.mode:<15} {done.dtype:<9} {counts}  {nearest}"] + [
        f"FAILED {check.case} {check.mode} {check.dtype}: {check.quantity} differs by "
        f"{check.difference:.3g} where {check.tolerance:.3g} is allowed"
        for check in failed
    ]
