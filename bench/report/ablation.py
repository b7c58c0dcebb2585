"""What one setting changes: the runs of a network beside one another, and in what they differ."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from bench.report import style
from bench.report.load_records import BASELINE, Entry
from bench.report.table import Columns

COLUMNS = (
    "dataset",
    "network",
    "run",
    "settings",
    "miou",
    "difference_points",
    "memory_bytes",
    "memory_ratio",
    "latency_s",
)
READABLE: Columns = {
    "network": ("network", style.network_name),
    "run": ("run", str),
    "settings": ("in what they differ", str),
    "miou": ("mIoU %", style.percent),
    "difference_points": (
        "to its best, points",
        lambda v: style.NOTHING if pd.isna(v) else f"{v:+.1f}",
    ),
    "memory_bytes": ("peak memory", style.size),
    "memory_ratio": (
        "of its best run’s",
        lambda v: style.NOTHING if pd.isna(v) else f"{v:.2f} ×",
    ),
    "latency_s": ("latency", style.duration),
}


def rows(entries: Sequence[Entry], runs: pd.DataFrame, meter: str) -> pd.DataFrame:
    """One line a run of each network that has several evaluated ones on a data set, best first.

    Args:
        runs: `table.runs` of the same entries.
        meter: its column that memory is taken from.
    """
    known = runs.set_index("run")
    alike: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        if entry.network != BASELINE and pd.notna(known.miou[entry.name]):
            alike.setdefault((entry.model.dataset, entry.network), []).append(entry)
    lines = [
        line for group in alike.values() if len(group) > 1 for line in _lines(group, known, meter)
    ]
    frame = pd.DataFrame(lines, columns=list(COLUMNS))
    return frame.astype({"memory_bytes": "Int64"})


def differences(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each of several settings, in words, the values of those keys in which they differ."""
    names = list(dict.fromkeys(name for one in settings for name in one))
    differing = [n for n in names if any(one.get(n) != settings[0].get(n) for one in settings)]
    return [
        ", ".join(f"{name} {_said(one[name])}" for name in differing if name in one)
        for one in settings
    ]


def settings_of(entry: Entry) -> dict[str, Any]:
    """What makes a run what it is, by one flat name each: strategy, specification, start, seed."""
    return {
        "strategy": entry.run.strategy,
        **entry.model.spec,
        **entry.run.overrides,
        "start": entry.model.start,
        "seed": entry.model.seed,
    }


def _lines(group: Sequence[Entry], known: pd.DataFrame, meter: str) -> Iterator[dict[str, Any]]:
    said = dict(
        zip([e.name for e in group], differences([settings_of(e) for e in group]), strict=True)
    )
    own = known.loc[list(said)].sort_values("miou", ascending=False, kind="stable")
    best = own.iloc[0]
    for run, row in own.iterrows():
        both = pd.notna(row[meter]) and pd.notna(best[meter])
        yield {
            "dataset": row.dataset,
            "network": row.network,
            "run": run,
            "settings": said[str(run)],
            "miou": row.miou,
            "difference_points": 100 * (row.miou - best.miou),
            "memory_bytes": row[meter],
            "memory_ratio": float(row[meter]) / float(best[meter]) if both else None,
            "latency_s": row.latency_s,
        }


def _said(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " + ".join(map(str, value))
    return "none" if value is None else str(value)
