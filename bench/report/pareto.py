"""Which runs no other run beats on memory and accuracy at once."""

from collections.abc import Sequence

import pandas as pd


def front(frame: pd.DataFrame, memory: str, floor: float | None) -> list[str]:
    """Names of the runs that no other run dominates, cheapest first.

    Args:
        frame: `table.runs` without the floor; rows without a memory or an mIoU are left out.
        memory: a column, less is better.
        floor: mIoU that a run must be above to be a choice at all; None: none.
    """
    known = frame.dropna(subset=[memory, "miou"])
    ordered = known.sort_values([memory, "miou"], ascending=[True, False], kind="stable")
    best = float("-inf") if floor is None else floor
    chosen: list[str] = []
    for run, value in zip(ordered.run, ordered.miou, strict=True):
        if value > best:
            best = float(value)
            chosen.append(str(run))
    return chosen


def hypervolume(points: Sequence[tuple[float, float]], reference: float) -> float:
    """The share of a rectangle that a front dominates, 0..1.

    The rectangle reaches from no memory to `reference` and from an accuracy of 0 to one of 1; a
    point dominates what has as much memory or more and is as accurate or less.

    Args:
        points: (memory, accuracy 0..1) of the front, cheapest first.
        reference: the most memory that counts, in the same unit.
    """
    if not points:
        return 0.0
    ends = [memory for memory, _ in points[1:]] + [reference]
    areas = [
        max(0.0, min(end, reference) - memory) * accuracy
        for (memory, accuracy), end in zip(points, ends, strict=True)
    ]
    return sum(areas) / reference
