"""The quality gate: little memory is no merit of a run that hardly segments.

A run passes if it reaches a stated share of the best mIoU on its data set."""

import pandas as pd

from bench.report.load_records import BASELINE

SHARE = 0.9


def shares(frame: pd.DataFrame) -> pd.Series:
    """mIoU of each run as a share of the best one on its data set; empty without an accuracy.

    Args:
        frame: columns `dataset` and `miou`.
    """
    best = frame.groupby("dataset").miou.transform("max")
    return (frame.miou / best.where(best > 0)).astype(float)


def missed(frame: pd.DataFrame) -> list[str]:
    """Runs with an accuracy that do not pass, in the frame's order.

    Args:
        frame: `table.runs`.
    """
    return [str(run) for run in frame[frame.share_of_best < SHARE].run]


def baseline_miou(frame: pd.DataFrame) -> float | None:
    """mIoU of the nearest class-mean colour, if it was evaluated.

    Args:
        frame: `table.runs` of one data set.
    """
    found = frame[(frame.network == BASELINE) & frame.miou.notna()].miou
    return float(found.iloc[0]) if len(found) else None
