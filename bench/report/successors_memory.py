"""Predicted memory of the ultra-high-resolution methods beside what papers print of it."""

from typing import Any

import pandas as pd

from bench.record import Record
from bench.report import style
from bench.report.load_records import MB, published
from bench.report.table import Columns

WITHIN = (0.05, 0.15)
"""Shares of the published memory that a prediction may be off by."""
KNOWN = {
    ("glnet", "collaborative"): "GLNet G<->L / collaborative",
    ("baselines/fctl", "contexts"): "FCtL / contexts",
    ("baselines/isdnet", "whole"): "ISDNet / whole",
    ("baselines/magnet", "progressive"): "MagNet / progressive",
    ("baselines/magnet", "fast"): "MagNet-Fast / fast",
    ("baselines/pointrend", "whole"): "PointRend / whole",
    ("baselines/cascadepsp", "cascade"): "CascadePSP / cascade",
}
"""(method, strategy) -> the row of bench/published.csv that its papers print of DeepGlobe."""

MEMORY_COLUMNS = (
    "dataset",
    "run",
    "done",
    "side_px",
    "predicted_bytes",
    "reserved_bytes",
    "weights_bytes",
    "host_bytes",
    "published_bytes",
    "ratio",
    "verdict",
)
MEMORY: Columns = {
    "dataset": ("sizes of", str),
    "run": ("run", str),
    "done": ("done", str),
    "side_px": ("side px", str),
    "predicted_bytes": ("predicted", style.size),
    "reserved_bytes": ("reserved", style.size),
    "weights_bytes": ("of it weights", style.size),
    "host_bytes": ("on the host", style.size),
    "published_bytes": ("published", style.size),
    "ratio": ("ratio", lambda v: style.NOTHING if pd.isna(v) else f"{v:.2f}"),
    "verdict": ("", str),
}


def memory(predicted: Record | None) -> pd.DataFrame:
    """One line a method, a way of doing it and an image size: predicted and published memory, their
    ratio, and a verdict.

    Args:
        predicted: the record of the stage `successors`.
    """
    rows = predicted.values["rows"] if predicted and predicted.status == "ok" else []
    numbers = published().dropna(subset=["memory_mb"])
    known = dict(zip(numbers.method + " / " + numbers.inference, numbers.memory_mb, strict=True))
    lines = []
    for row in rows:
        key = row["published"] or KNOWN[row["method"], row["strategy"]]
        if row["dataset"] != "DeepGlobe":
            method, _, inference = key.partition(" / ")
            key = f"{method.split()[0]} on {row['dataset'].split()[0]} / {inference}"
        printed = int(known[key]) * MB if key in known else None
        lines.append(
            {
                **{name: row[name] for name in MEMORY_COLUMNS if name in row},
                "predicted_bytes": row["device_bytes"],
                "published_bytes": printed,
                "ratio": row["device_bytes"] / printed if printed else None,
                "verdict": verdict(row, printed),
            }
        )
    frame = pd.DataFrame(lines, columns=list(MEMORY_COLUMNS))
    integers = [name for name in MEMORY_COLUMNS if name.endswith("_bytes")]
    return frame.astype(dict.fromkeys(integers, "Int64"))


def verdict(row: dict[str, Any], printed: int | None) -> str:
    """Whether the tensors alone explain a published figure, and if not, what would have to be true.

    Args:
        row: of the record; printed: published bytes.
    """
    if printed is None:
        return "none published"
    predicted, weights = row["device_bytes"], row["weights_bytes"]
    for share in WITHIN:
        if abs(predicted / printed - 1) <= share:
            return f"within {share:.0%}"
    off = abs(predicted - printed) / MB
    if predicted < printed:
        held = (row["reserved_bytes"] or predicted) / MB
        rest = printed / MB - held
        if rest > 0:
            return (
                f"{off:.0f} MiB more: {rest:.0f} MiB of context and workspace beside what is "
                "reserved"
            )
        return f"{off:.0f} MiB more, which is within what an allocator keeps reserved"
    if row["strategy"] == "whole" and printed > weights:
        scale = ((printed - weights) / (predicted - weights)) ** 0.5
        return f"{off:.0f} MiB less: an image of {scale:.2f} of these sides at most, or leaner maps"
    if weights >= printed:
        return f"{off:.0f} MiB less: fewer weights, which alone are more"
    return f"{off:.0f} MiB less: a smaller patch or network"
