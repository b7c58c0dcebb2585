"""How far predicted memory is from what the allocator booked: every run and training phase."""

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from bench.record import Record
from bench.report import style
from bench.report.load_records import Inputs

COLUMNS = (
    "run",
    "phase",
    "height_px",
    "width_px",
    "device",
    "predicted_bytes",
    "booked_bytes",
    "ratio",
)
INFERENCE = "inference"
READABLE: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "run": ("run or model", str),
    "phase": ("phase", str),
    "height_px": ("height px", str),
    "width_px": ("width px", str),
    "device": ("device", str),
    "predicted_bytes": ("predicted", style.size),
    "booked_bytes": ("booked", style.size),
    "ratio": ("ratio", lambda v: f"{v:.3f}"),
}


def rows(inputs: Inputs) -> pd.DataFrame:
    """One line a measured run and image size, then one a training phase, in the suite's order.

    `booked_bytes` is what the device's allocator says, `ratio` predicted / booked."""
    found = [line for entry in inputs.entries for line in _inference(entry.name, entry.measured)]
    found += _training(inputs.steps)
    frame = pd.DataFrame(found, columns=list(COLUMNS))
    frame["ratio"] = frame.predicted_bytes / frame.booked_bytes
    return frame


def within(frame: pd.DataFrame) -> str:
    """How many lines there are, and how far the worst ratio is from 1, in words."""
    if frame.empty:
        return ""
    off = (frame.ratio - 1).abs()
    worst = frame.iloc[int(off.argmax())]
    return (
        f"{len(frame)} comparisons, median {100 * off.median():.2f} % off, at most "
        f"{100 * off.max():.2f} % ({worst.run}, {worst.phase})"
    )


def _inference(name: str, measured: Record | None) -> list[dict[str, Any]]:
    if measured is None or measured.status != "ok":
        return []
    values = measured.values
    meters = values["meters"]
    whole = {
        "height_px": values["height_px"],
        "width_px": values["width_px"],
        "predicted_bytes": meters["predicted"].get("told_bytes")
        or meters["predicted"].get("allocated_bytes")
        or meters["predicted"]["bytes"],
        "booked_bytes": meters["allocated"]["bytes"],
    }
    sizes = [whole, *([values["part"]] if "part" in values else [])]
    common = {"run": name, "phase": INFERENCE, "device": values["device"]}
    return [{**common, **size} for size in sizes]


def _training(steps: Record | None) -> list[dict[str, Any]]:
    if steps is None or steps.status != "ok":
        return []
    wanted = ("height_px", "width_px", "predicted_bytes", "booked_bytes")
    return [
        {"run": model, "phase": phase, "device": steps.values["device"]}
        | {key: values[key] for key in wanted}
        for model, phases in steps.values["models"].items()
        for phase, values in phases.items()
    ]
