"""What published settings took on a real card, beside what was predicted without one."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from bench.memory.gpu_overhead import blas_bytes
from bench.record import Record
from bench.report import style
from bench.report.load_records import MB, published
from bench.report.table import Columns

WITHIN = 0.02
COLUMNS = (
    "card",
    "dataset",
    "run",
    "done",
    "method",
    "strategy",
    "side_px",
    "status",
    "tensors_bytes",
    "predicted_bytes",
    "allocated_bytes",
    "ratio",
    "predicted_reserved_bytes",
    "reserved_bytes",
    "nvml_bytes",
    "beside_bytes",
    "published_bytes",
    "wall_s",
    "forward_s",
)


def _seconds(value: Any) -> str:
    return style.NOTHING if pd.isna(value) else style.duration(value)


READABLE: Columns = {
    "card": ("card", str),
    "dataset": ("sizes of", str),
    "run": ("run", str),
    "done": ("done", str),
    "side_px": ("side px", str),
    "tensors_bytes": ("tensors", style.size),
    "predicted_bytes": ("with copies", style.size),
    "allocated_bytes": ("allocated", style.size),
    "ratio": ("ratio", lambda v: style.NOTHING if pd.isna(v) else f"{v:.2f}"),
    "reserved_bytes": ("reserved", style.size),
    "nvml_bytes": ("seen by the card", style.size),
    "published_bytes": ("published", style.size),
    "wall_s": ("a prediction", _seconds),
    "forward_s": ("a forward pass", _seconds),
}


def rows(
    records: Sequence[Record], predicted: Record | None, successors: Record | None
) -> pd.DataFrame:
    """One line a run, a way of doing it and an image size on each card.

    `tensors_bytes` is what is predicted of tensors alone, `predicted_bytes` what torch's allocator
    should say on a card with TF32, `ratio` that / `allocated_bytes`, `beside_bytes` what the card
    saw beside the allocator's segments.

    Args:
        records: of `bench.experiments.gpu_memory`.
        predicted: of the stage `predict`; successors: of the stage of that name.
    """
    known = {**_of_paper(predicted), **_of_successors(successors)}
    lines = [line for record in records for line in _lines(record, known)]
    frame = pd.DataFrame(lines, columns=list(COLUMNS))
    integers = [name for name in COLUMNS if name.endswith("_bytes")]
    return frame.astype(dict.fromkeys(integers, "Int64"))


def _lines(record: Record, known: Mapping[Any, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    numbers = published().dropna(subset=["memory_mb"])
    printed = dict(zip(numbers.method + " / " + numbers.inference, numbers.memory_mb, strict=True))
    name = str(record.provenance.get("device_name", record.name))
    for row in record.values["rows"]:
        meters = row.get("meters", {})
        held = {meter: said["bytes"] for meter, said in meters.items()}
        foretold = known.get((row["dataset"], row["run"], row["done"]), {})
        told = foretold.get("tf32_allocated_bytes")
        told = told + blas_bytes(name) if told else None
        segments = foretold.get("tf32_reserved_bytes")
        mb = printed.get(row["published"]) if row["dataset"] == "DeepGlobe" else None
        yield {
            **{key: row[key] for key in COLUMNS if key in row},
            "card": name,
            "tensors_bytes": foretold.get("device_bytes"),
            "predicted_bytes": told,
            "allocated_bytes": held.get("allocated"),
            "ratio": told / held["allocated"] if told and "allocated" in held else None,
            "predicted_reserved_bytes": segments + blas_bytes(name) if segments else None,
            "reserved_bytes": held.get("reserved"),
            "nvml_bytes": held.get("nvml"),
            "beside_bytes": held["nvml"] - held["reserved"] if "nvml" in held else None,
            "published_bytes": None if mb is None or pd.isna(mb) else int(mb) * MB,
            "wall_s": statistics.median(row["wall_s"]) if row.get("wall_s") else None,
            "forward_s": statistics.median(row["forward_s"]) if row.get("forward_s") else None,
        }


def _of_paper(record: Record | None) -> dict[Any, Mapping[str, Any]]:
    runs = record.values["runs"] if record and record.status == "ok" else {}
    return {("DeepGlobe", name, ""): run for name, run in runs.items()}


def _of_successors(record: Record | None) -> dict[Any, Mapping[str, Any]]:
    found = record.values["rows"] if record and record.status == "ok" else []
    return {(row["dataset"], row["run"], row["done"]): row for row in found}


def words(frame: pd.DataFrame) -> list[str]:
    """What the lines say together, a sentence each."""
    known = frame.dropna(subset=["ratio"])
    if known.empty:
        return []
    off = (known.ratio - 1).abs()
    bare = (known.tensors_bytes / known.allocated_bytes - 1).abs()
    found = [
        f"Of {len(known)} predictions {int((off <= WITHIN).sum())} are within {WITHIN:.0%} of what "
        f"torch's allocator said; of the tensors alone {int((bare <= WITHIN).sum())} would be."
    ]
    far = known[off > WITHIN]
    if len(far):
        named = ", ".join(
            f"{run} ({style.size(seen)}, {ratio:.2f} of it predicted)"
            for run, seen, ratio in zip(far.run, far.allocated_bytes, far.ratio, strict=True)
        )
        found.append(f"Not explained: {named}.")
    beside = frame.beside_bytes.dropna()
    if len(beside):
        low, high = style.size(beside.min()), style.size(beside.max())
        found.append(
            f"Beside the allocator's segments the card saw {low} to {high}: the context and the "
            "kernels that were loaded."
        )
    return found
