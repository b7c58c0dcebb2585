"""How memory and work grow with the image, by strategy: constant, or with every pixel."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from bench.record import Record
from bench.report.figures.curves import QUANTITIES

COLUMNS = (
    "run",
    "side_px",
    "patches",
    "device_bytes",
    "reserved_bytes",
    "host_bytes",
    "flops",
    "worked_out",
)
Line = Mapping[str, int]
"""Of the record: side_px, patches and, where it was worked out, the quantities."""
ROUNDING = 0.01
"""Of a quantity: a smaller change is no growth."""
CONSTANT = 0.05
"""Growth with a smaller exponent of the number of pixels is called constant."""


def points(predicted: Record | None) -> pd.DataFrame:
    """One line a run and image side.

    Where a size was not worked out (`worked_out` false), every further pixel and every further
    patch costs what it costs between the two largest sizes that were."""
    growth = predicted.values.get("growth", {}) if predicted else {}
    rows = []
    for run, lines in growth.items():
        worked = [line for line in lines if "flops" in line]
        for line in lines:
            known = "flops" in line
            values = line if known else _further(worked[-2], worked[-1], line)
            rows.append({"run": run, **values, "worked_out": known})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _further(a: Line, b: Line, size: Line) -> dict[str, int]:
    """What an image of a size that was not worked out takes, from two that were."""
    known = np.array([[line["side_px"] ** 2, line["patches"]] for line in (a, b)], float)
    wanted = np.array([size["side_px"] ** 2, size["patches"]], float)
    found = dict(size)
    for name in ("device_bytes", "reserved_bytes", "host_bytes", "flops"):
        if abs(b[name] - a[name]) <= ROUNDING * b[name]:
            found[name] = b[name]
        else:
            # Not `solve`: where patches fit the sides exactly, the two cannot be told apart.
            costs = np.linalg.lstsq(known, np.array([a[name], b[name]], float))[0]
            found[name] = round(float(wanted @ costs))
    return found


def slopes(frame: pd.DataFrame) -> pd.DataFrame:
    """One line a run: the exponent with which each quantity grows with the number of pixels, by
    least squares on the logarithms of the larger half of the sizes, and what a further pixel costs
    there."""
    rows = []
    for run, own in frame.groupby("run", sort=False):
        own = own.iloc[-max(2, (len(own) + 1) // 2) :]
        pixels = own.side_px.to_numpy(float) ** 2
        row: dict[str, Any] = {"run": run}
        for name in QUANTITIES:
            values = own[name].to_numpy(float)
            row[name] = float(np.polyfit(np.log(pixels), np.log(values), 1)[0])
            row[f"{name}_a_pixel"] = float(np.polyfit(pixels, values, 1)[0])
        rows.append(row)
    return pd.DataFrame(rows)


def law(exponent: float) -> str:
    """An exponent of the number of pixels, in the words of complexity."""
    if abs(exponent) < CONSTANT:
        return "O(1)"
    return "O(pixels)" if abs(exponent - 1) < CONSTANT else f"pixels^{exponent:.2f}"


def readable() -> Mapping[str, tuple[str, Callable[[Any], str]]]:
    """How a line of `slopes` reads."""
    columns: dict[str, tuple[str, Callable[[Any], str]]] = {"run": ("run", str)}
    for name, (heading, unit) in QUANTITIES.items():
        columns[name] = (heading, lambda v: f"{law(v)} ({abs(v):.2f})")
        where = heading.split(" ")[0] if unit == "B" else ""
        columns[f"{name}_a_pixel"] = (
            f"{where} {unit} a pixel".strip(),
            lambda v: f"{max(v, 0):,.0f}",
        )
    return columns
