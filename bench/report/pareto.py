"""Which runs no other run beats on memory and accuracy at once."""

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
