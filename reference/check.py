"""One comparison with golden data, the collector of those of a case, and how they are printed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reference.golden import Golden, fingerprint

FLOATS = ("float32", "float64")
RELATIVE = 1e-5
"""Of an array's largest magnitude: what float32 supports over so many layers."""
SUMS = ("sum", "abssum")
CANCELLING = ("mean", "sum")


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

    def array(
        self,
        quantity: str,
        ours: NDArray[Any],
        theirs: NDArray[Any],
        largest: float,
        tolerance: float = RELATIVE,
    ) -> None:
        """Two arrays, by the largest difference as a share of the whole array's largest
        magnitude."""
        difference = float("inf")
        if ours.size == theirs.size:  # some golden arrays have lost sides of 1
            apart = np.abs(ours.astype(np.float64).reshape(theirs.shape) - theirs)
            difference = float(apart.max()) / (largest or 1)
        self.check(f"{quantity} (share)", difference, tolerance)

    def statistics(
        self,
        quantity: str,
        ours: NDArray[Any],
        theirs: Mapping[str, Any],
        tolerance: float = RELATIVE,
        own_scale: bool = False,
    ) -> None:
        """Shape, mean, deviation, largest magnitude and sums of a whole array, as shares of its
        largest magnitude; with `own_scale` each as a share of itself, without those that
        cancel."""
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
            if name not in theirs or (own_scale and name in CANCELLING):
                continue
            expected = theirs[name] / (values.size if name in SUMS else 1)
            scale = abs(expected if own_scale else theirs["absmax"]) or 1.0
            what = "share" if own_scale else "share of the largest"
            self.check(
                f"{quantity}, {name} of all ({what})", abs(value - expected) / scale, tolerance
            )

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
            moved = np.abs(
                np.bincount(found.ravel(), minlength=len(scores)) - np.array(counts or 0)
            )
            wrong = max(int(moved.sum()) // 2 - int(tied.sum()), 0 if tied.any() and counts else 1)
        self.check(f"{quantity} (pixels that no tie explains)", float(wrong), 0)
        return found


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


def heading(case: int, mode: int) -> str:
    """The table's first line, for names of so many letters."""
    return (
        f"{'case':<{case}} {'mode':<{mode}} {'precision':<9} {'compared':>8} {'failed':>6}  "
        "largest difference, in units of its tolerance"
    )


def rows(done: Comparison, case: int, mode: int) -> list[str]:
    """A line with what comes nearest to its tolerance, and one for each comparison that fails."""
    worst = max(done.checks, key=lambda check: check.share, default=None)
    failed = [check for check in done.checks if not check.ok]
    first = (
        f"{done.case:<{case}} {done.mode:<{mode}} {done.dtype:<9} {len(done.checks):>8} "
        f"{len(failed):>6}  " + (f"{worst.share:.2f} {worst.quantity}" if worst else "nothing")
    )
    return [first] + [
        f"FAILED {check.case} {check.mode} {check.dtype}: {check.quantity} differs by "
        f"{check.difference:.3g} where {check.tolerance:.3g} is allowed"
        for check in failed
    ]
