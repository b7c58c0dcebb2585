"""One comparison with golden data, and the table of many."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FLOATS = ("float32", "float64")
RELATIVE = 1e-5
"""Of an array's largest magnitude: what float32 supports over so many layers."""


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


@dataclass
class Comparing:
    """Collects the comparisons of one case in one mode and precision."""

    case: str
    mode: str
    dtype: str
    checks: list[Check]

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
    ) -> None:
        """Shape, mean, deviation, largest magnitude and sums of a whole array."""
        self.equal(f"{quantity}, shape", list(ours.shape), list(theirs["shape"]))
        values = ours.astype(np.float64)
        largest = float(theirs["absmax"]) or 1.0
        found = {
            "mean": float(values.mean()),
            "std": float(values.std()),
            "absmax": float(np.abs(values).max()),
            "sum": float(values.sum()) / values.size,
            "abssum": float(np.abs(values).sum()) / values.size,
        }
        for name, value in found.items():
            if name in theirs:
                expected = theirs[name] / (values.size if name in ("sum", "abssum") else 1)
                off = abs(value - expected) / largest
                self.check(f"{quantity}, {name} of all (share of the largest)", off, tolerance)

    def labels(
        self,
        quantity: str,
        scores: NDArray[Any],
        theirs: NDArray[Any] | None = None,
        sha256: str = "",
        counts: Sequence[int] = (),
    ) -> NDArray[np.uint8]:
        """The best class of each pixel of scores (K, H, W), against a whole map or its SHA-256 and
        the pixels a class; where the two best tie within the noise, either is right."""
        from reference.golden import fingerprint

        found: NDArray[np.uint8] = scores.argmax(0).astype(np.uint8)
        best = np.partition(scores, -2, 0)[-2:] if len(scores) > 1 else np.ones((2, 1, 1))
        tied = best[1] - best[0] <= 2 * RELATIVE * float(np.abs(scores).max())
        if theirs is not None:
            wrong = int(((found != theirs) & ~tied).sum())
        elif fingerprint(found) == sha256:
            wrong = 0
        else:
            moved = np.abs(np.bincount(found.ravel(), minlength=len(scores)) - np.array(counts))
            wrong = max(int(moved.sum()) // 2 - int(tied.sum()), 0 if tied.any() else 1)
        self.check(f"{quantity} (pixels that no tie explains)", float(wrong), 0)
        return found


def table(checks: Sequence[Check]) -> str:
    """One line a case, mode and precision, with what comes nearest to its tolerance; then what
    fails."""
    wide = max([4, *(len(check.mode) for check in checks)])
    name = max([4, *(len(check.case) for check in checks)])
    lines = [
        f"{'case':<{name}} {'mode':<{wide}} {'precision':<9} {'compared':>8} {'failed':>6}  "
        "largest difference, in units of its tolerance"
    ]
    for key in dict.fromkeys((check.case, check.mode, check.dtype) for check in checks):
        own = [check for check in checks if (check.case, check.mode, check.dtype) == key]
        worst = max(own, key=_share)
        failed = sum(not check.ok for check in own)
        case, mode, dtype = key
        lines.append(
            f"{case:<{name}} {mode:<{wide}} {dtype:<9} {len(own):>8} {failed:>6}  "
            f"{_share(worst):.2f} {worst.quantity}"
        )
    lines += [
        f"FAILED {check.case} {check.mode} {check.dtype}: {check.quantity} differs by "
        f"{check.difference:.3g} where {check.tolerance:.3g} is allowed"
        for check in checks
        if not check.ok
    ]
    return "\n".join(lines)


def _share(check: Check) -> float:
    if check.tolerance:
        return check.difference / check.tolerance
    return float("inf") if check.difference else 0.0
