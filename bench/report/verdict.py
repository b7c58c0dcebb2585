"""Published, ours, the difference and a verdict: one line a run that answers to a published row."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from bench.errors import UserError
from bench.report import style
from bench.report.load_records import MB, Entry, published

POINTS = (0.5, 1.0, 2.0)
"""mIoU is reproduced within the first of these that bears the difference; beyond the last it is
not. A plot can be read to about .3 points, and no paper seen gives its spread over seeds."""
SHARES = (0.05, 0.15)
"""The same for memory, as a share of what is published."""
NOT_RUN = "not run"
COLUMNS = (
    "run",
    "network",
    "published",
    "dataset",
    "confidence",
    "published_miou",
    "miou",
    "definition",
    "difference_points",
    "verdict",
    "published_bytes",
    "nvml_bytes",
    "memory_ratio",
    "memory_verdict",
)
READABLE: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "run": ("run", str),
    "published": ("published as", str),
    "confidence": ("number", lambda v: {"figure": "off a plot", "exact": "printed"}[v]),
    "published_miou": ("published mIoU %", style.percent),
    "miou": ("ours", style.percent),
    "definition": ("counted", lambda v: style.NOTHING if pd.isna(v) else str(v)),
    "difference_points": (
        "difference",
        lambda v: style.NOTHING if pd.isna(v) else f"{v:+.1f}",
    ),
    "verdict": ("verdict", str),
    "published_bytes": ("published memory", style.size),
    "nvml_bytes": ("ours, nvml", style.size),
    "memory_verdict": ("verdict on memory", str),
}


def rows(entries: Sequence[Entry], runs: pd.DataFrame) -> pd.DataFrame:
    """One line a run with a `published` row, in the suite's order; empty where the suite has none.

    mIoU is compared by the run's own definition where it states one, else by the official one,
    which the paper's numbers come from; memory by what the card saw (`nvml`), as the paper did, and
    never by a figure of another kind.

    Args:
        runs: `table.runs` of the same entries.

    Raises:
        UserError: a run names a row that bench/published.csv does not have.
    """
    known = {f"{row.method} / {row.inference}": row for _, row in published().iterrows()}
    own = {row.run: row for _, row in runs.iterrows()}
    lines = []
    for entry in entries:
        key = entry.run.published
        if key is None:
            continue
        if key not in known:
            raise UserError(
                f"params.yaml: runs.{entry.name}.published is {key!r}, but bench/published.csv has "
                "no such METHOD / inference, or only a recalled one."
            )
        lines.append(_line(entry, key, known[key], own[entry.name]))
    frame = pd.DataFrame(lines, columns=list(COLUMNS))
    return frame.astype({"published_bytes": "Int64", "nvml_bytes": "Int64"})


def _line(entry: Entry, key: str, theirs: Any, ours: Any) -> dict[str, Any]:
    definition = "miou_stated" if entry.run.metric else "miou_official"
    line: dict[str, Any] = {
        "run": entry.name,
        "network": entry.network,
        "published": key,
        "dataset": theirs.dataset,
        "confidence": theirs.confidence,
        "published_miou": theirs.miou_percent / 100,
        "verdict": NOT_RUN,
        "memory_verdict": NOT_RUN,
    }
    if pd.notna(theirs.memory_mb):
        line["published_bytes"] = int(theirs.memory_mb) * MB
    else:
        line["memory_verdict"] = "none published"
    if theirs.dataset.lower() != entry.model.dataset.lower():
        return line | {"verdict": "another data set", "memory_verdict": "another data set"}
    if entry.evaluation:
        line["miou"] = ours[definition]
        line["definition"] = {"miou_stated": "as stated", "miou_official": "official"}[definition]
        line["difference_points"] = 100 * (line["miou"] - line["published_miou"])
        line["verdict"] = _verdict(abs(line["difference_points"]), POINTS, "{:.1f} points")
    elif entry.status in ("oom", "failed"):
        line["verdict"] = {"oom": "not reproduced: out of memory", "failed": "failed"}[entry.status]
    if "published_bytes" in line and pd.notna(ours.nvml_bytes):
        line["nvml_bytes"] = ours.nvml_bytes
        line["memory_ratio"] = ours.nvml_bytes / line["published_bytes"]
        line["memory_verdict"] = _verdict(abs(line["memory_ratio"] - 1), SHARES, "{:.0%}")
    elif "published_bytes" in line and entry.measurement:
        line["memory_verdict"] = "not measured on a card"
    return line


def _verdict(distance: float, limits: Sequence[float], form: str) -> str:
    """The closest limit that holds."""
    held = [limit for limit in limits if distance <= limit]
    return f"reproduced within {form.format(held[0])}" if held else "not reproduced"
