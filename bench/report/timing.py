"""How long a prediction takes, and how much of that the network itself does."""

import statistics
from collections.abc import Sequence
from typing import Any

import pandas as pd

from bench.report import style
from bench.report.load_records import Entry
from bench.report.table import Columns

COLUMNS = (
    "dataset",
    "run",
    "strategy",
    "height_px",
    "width_px",
    "repetitions",
    "latency_s",
    "fastest_s",
    "slowest_s",
    "network_s",
    "outside_share",
    "megapixels_per_s",
    "flops",
    "flops_per_s",
)
READABLE: Columns = {
    "run": ("run", str),
    "strategy": ("strategy", str),
    "latency_s": ("latency", style.duration),
    "fastest_s": ("fastest", style.duration),
    "slowest_s": ("slowest", style.duration),
    "repetitions": ("repetitions", str),
    "network_s": ("network alone", style.duration),
    "outside_share": ("outside of it %", style.percent),
    "megapixels_per_s": ("megapixels a second", lambda v: _digits(v)),
    "flops": ("GFLOP", lambda v: _digits(v / 1e9) if pd.notna(v) else style.NOTHING),
    "flops_per_s": ("GFLOP/s", lambda v: _digits(v / 1e9) if pd.notna(v) else style.NOTHING),
}


def rows(entries: Sequence[Entry]) -> pd.DataFrame:
    """One line a run whose latency was measured, fastest first: median and range of its
    repetitions, the network's share, and what that comes to a pixel and an operation."""
    lines = [_line(e) for e in entries if e.measurement and e.measurement["latency_s"]]
    frame = pd.DataFrame(lines, columns=list(COLUMNS))
    integers = ("height_px", "width_px", "repetitions", "flops")
    return frame.astype(dict.fromkeys(integers, "Int64")).sort_values(
        ["dataset", "latency_s"], kind="stable", ignore_index=True
    )


def _line(entry: Entry) -> dict[str, Any]:
    values = entry.measurement
    seconds = values["latency_s"]
    latency = statistics.median(seconds)
    alone = statistics.median(values["network_s"]) if values.get("network_s") else None
    flops = values.get("flops")
    return {
        "dataset": entry.model.dataset,
        "run": entry.name,
        "strategy": entry.run.strategy,
        "height_px": values["height_px"],
        "width_px": values["width_px"],
        "repetitions": len(seconds),
        "latency_s": latency,
        "fastest_s": min(seconds),
        "slowest_s": max(seconds),
        "network_s": alone,
        # Two clocks in two rounds: where next to nothing is outside, their noise can pass it.
        "outside_share": max(0.0, 1 - alone / latency) if alone else None,
        "megapixels_per_s": values["height_px"] * values["width_px"] / 1e6 / latency,
        "flops": flops,
        "flops_per_s": flops / latency if flops else None,
    }


def _digits(value: Any) -> str:
    """Three digits."""
    if pd.isna(value):
        return style.NOTHING
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"
