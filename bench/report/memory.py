"""Predicted memory: against allocators, over the size of an image, on real GPUs, and of GLNet's
collapsed head."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from bench.memory.gpu_overhead import blas_bytes
from bench.record import Record
from bench.report import figures, style
from bench.report.figures.curves import QUANTITIES
from bench.report.load_records import Inputs, method_name, published_rows, values
from bench.report.section import Section, image, section, table

INFERENCE = "inference"
WITHIN = 0.02
PATHS = ("plain", "collapsed")
ROUNDING = 0.01
"""Of a quantity: a smaller change is no growth."""
CONSTANT = 0.05
"""Growth with a smaller exponent of the number of pixels is called constant."""
Line = Mapping[str, int]


def allocator_section(inputs: Inputs) -> Section:
    """Predicted memory beside what the device's allocator reports: one line a measured run and
    image size, then one a training phase, in the suite's order; `ratio` predicted / allocated."""
    rows = []
    for entry in inputs.entries:
        if entry.measurement:
            found, predicted = entry.measurement, entry.meters["predicted"]
            whole = {
                "height_px": found["height_px"],
                "width_px": found["width_px"],
                "predicted_bytes": predicted.get("told_bytes")
                or predicted.get("allocated_bytes")
                or predicted["bytes"],
                "booked_bytes": entry.meters["allocated"]["bytes"],
            }
            common = {"run": entry.name, "phase": INFERENCE, "device": found["device"]}
            rows += [{**common, **size} for size in (whole, found.get("part")) if size]
    steps = values(inputs.steps)
    rows += [
        {**found, "run": model, "phase": phase, "device": steps["device"]}
        for model, phases in steps.get("models", {}).items()
        for phase, found in phases.items()
    ]
    rows = [{**row, "allocated_bytes": row["booked_bytes"]} for row in rows]  # key of the records
    frame = table(rows, "run phase height_px width_px device predicted_bytes allocated_bytes ratio")
    frame["ratio"] = (frame.predicted_bytes / frame.allocated_bytes).astype(float)
    return section("prediction", rows=frame, show=" ".join(frame.columns), findings=_errors)


def growth_sections(predicted: Record | None) -> list[Section]:
    """How memory and operations grow with the image: the fits, and (a file alone) the points."""
    points = growth_points(predicted)
    laws = growth_laws(points)
    columns = {}
    for name, (heading, unit) in QUANTITIES.items():
        of = heading.split(" ")[0] if unit == "B" else ""
        columns[name] = (heading, lambda v: f"{law(v)} ({abs(v):.2f})")
        columns[f"{name}_a_pixel"] = (
            f"{of} {unit} a pixel".strip(),
            lambda v: f"{max(v, 0):,.0f}",
        )
    drawn = image("growth", partial(figures.curves.growth, points))
    fits = section(
        "growth_law",
        rows=laws,
        show=" ".join(laws.columns),
        columns=columns,
        figures=(drawn,) if len(points) else (),
    )
    return [fits, Section("growth", "Growth, points", rows=points, kinds=("csv",))]


def growth_points(predicted: Record | None) -> pd.DataFrame:
    """One line a run and image side.

    Where a size was not computed (`worked_out` false), every further pixel and every further patch
    costs what it costs between the two largest sizes that were."""
    rows = []
    for run, lines in values(predicted).get("growth", {}).items():
        done = [line for line in lines if "flops" in line]
        for line in lines:
            known = "flops" in line
            found = line if known else _extrapolated(done[-2], done[-1], line)
            rows.append({"run": run, **found, "worked_out": known})
    names = "run side_px patches device_bytes reserved_bytes host_bytes flops worked_out"
    return table(rows, names)


def growth_laws(points: pd.DataFrame) -> pd.DataFrame:
    """One line a run: the exponent with which each quantity grows with the number of pixels, by
    least squares on the logarithms of the larger half of the sizes, and what a further pixel costs
    there."""
    rows = []
    for run, own in points.groupby("run", sort=False):
        own = own.iloc[-max(2, (len(own) + 1) // 2) :]
        pixels = own.side_px.to_numpy(float) ** 2
        row: dict[str, Any] = {"run": run}
        for name in QUANTITIES:
            found = own[name].to_numpy(float)
            row[name] = float(np.polyfit(np.log(pixels), np.log(found), 1)[0])
            row[f"{name}_a_pixel"] = float(np.polyfit(pixels, found, 1)[0])
        rows.append(row)
    return pd.DataFrame(rows)


def law(exponent: float) -> str:
    """An exponent of the number of pixels, in the words of complexity."""
    if abs(exponent) < CONSTANT:
        return "O(1)"
    return "O(pixels)" if abs(exponent - 1) < CONSTANT else f"pixels^{exponent:.2f}"


def collapsed_head_section(record: Record | None) -> Section:
    """GLNet with plain and collapsed head, one line a path and image side: medians over the
    repetitions of time, the most of memory."""
    rows = []
    for side, paths in (record.values["sides"] if record else {}).items():
        for path in PATHS:  # a record has its keys in the order of the alphabet
            done, predicted = paths[path]["repetitions"], paths[path]["predicted"]
            rows.append(
                {
                    "path": path,
                    "height_px": int(side),
                    "width_px": int(side),
                    "threads": record and record.provenance["threads"],
                    "flops": predicted["flops"],
                    "wall_s": statistics.median(each["wall_s"] for each in done),
                    "network_s": statistics.median(each["network_s"] for each in done),
                    "peak_rss_bytes": max(each["peak_rss_bytes"] for each in done),
                    "predicted_bytes": predicted["device_bytes"],
                    "predicted_weights_bytes": predicted["weights_bytes"],
                    "labels_equal_share": paths[path]["labels_equal_share"],
                }
            )
    return section(
        "collapsed_head",
        rows=table(
            rows,
            "path height_px width_px threads flops wall_s network_s peak_rss_bytes "
            "predicted_bytes predicted_weights_bytes labels_equal_share",
        ),
    )


def gpu_section(
    records: Sequence[Record], predicted: Record | None, uhr_methods: Record | None
) -> Section:
    """Published settings on real GPUs: one line a run, a variant and an image size.

    `tensors_bytes` is what is predicted of tensors alone, `predicted_bytes` what torch's allocator
    should report on a GPU with TF32, `ratio` that / `allocated_bytes`, `beside_bytes` the process
    total (NVML) beside the allocator's segments.

    Args:
        records: of `bench.experiments.gpu_memory`.
        predicted: of the stage `predict`.
        uhr_methods: of the stage that predicts the ultra-high-resolution methods.
    """
    known = {
        (row["dataset"], row["run"], row["done"]): row
        for row in values(uhr_methods).get("rows", [])
    }
    for name, run in values(predicted).get("runs", {}).items():
        known["DeepGlobe", name, ""] = run
    frame = table(
        (line for record in records for line in _on_gpu(record, known)),
        "card dataset run done method strategy side_px status tensors_bytes predicted_bytes "
        "allocated_bytes ratio predicted_reserved_bytes reserved_bytes nvml_bytes beside_bytes "
        "published_bytes wall_s forward_s",
    )
    drawn = image("on_card", partial(figures.charts.on_gpu, frame))
    return section(
        "on_card", rows=frame, figures=(drawn,) if len(frame) else (), findings=gpu_sentences
    )


def gpu_sentences(frame: pd.DataFrame) -> list[str]:
    """What the lines of `gpu_section` say together, a sentence each."""
    known = frame.dropna(subset=["ratio"])
    if known.empty:
        return []
    off = (known.ratio - 1).abs()
    bare = (known.tensors_bytes / known.allocated_bytes - 1).abs()
    found = [
        f"Of {len(known)} predictions {int((off <= WITHIN).sum())} are within {WITHIN:.0%} of what "
        f"torch's allocator reports; of the tensors alone {int((bare <= WITHIN).sum())} would be."
    ]
    far = known[off > WITHIN]
    if len(far):
        named = ", ".join(
            f"{run} ({style.size(size)}, {ratio:.2f} of it predicted)"
            for run, size, ratio in zip(far.run, far.allocated_bytes, far.ratio, strict=True)
        )
        found.append(f"Not explained: {named}.")
    beside = frame.beside_bytes.dropna()
    if len(beside):
        low, high = style.size(beside.min()), style.size(beside.max())
        found.append(
            f"Beside the allocator's segments the process takes {low} to {high}: the CUDA context "
            "and the kernels that were loaded."
        )
    return found


def variant(done: str) -> str:
    """A record's word for how a method is run, in the words of the report."""
    return {"as meant": "corrected"}.get(done, done)


def _errors(frame: pd.DataFrame) -> list[str]:
    """How far the ratios are from 1."""
    if frame.empty:
        return []
    off = (frame.ratio - 1).abs()
    worst = frame.iloc[int(off.argmax())]
    return [
        f"{len(frame)} comparisons, median error {100 * off.median():.2f} %, at most "
        f"{100 * off.max():.2f} % ({worst.run}, {worst.phase})."
    ]


def _extrapolated(a: Line, b: Line, size: Line) -> dict[str, int]:
    """What an image of a size that was not computed takes, from two that were."""
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


def _on_gpu(record: Record, known: Mapping[Any, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    printed = published_rows()
    name = str(record.provenance.get("device_name", record.name))
    for row in record.values["rows"]:
        held = {meter: found["bytes"] for meter, found in row.get("meters", {}).items()}
        predicted = known.get((row["dataset"], row["run"], row["done"]), {})
        with_blas = {
            key: predicted[f"tf32_{key}_bytes"] + blas_bytes(name)
            for key in ("allocated", "reserved")
            if predicted.get(f"tf32_{key}_bytes")
        }
        total = with_blas.get("allocated")
        theirs = printed.get(row["published"]) if row["dataset"] == "DeepGlobe" else None
        yield {
            **row,
            "card": name,
            "method": method_name(row["method"]),
            "done": variant(row["done"]),
            "tensors_bytes": predicted.get("device_bytes"),
            "predicted_bytes": total,
            "allocated_bytes": held.get("allocated"),
            "ratio": total / held["allocated"] if total and "allocated" in held else None,
            "predicted_reserved_bytes": with_blas.get("reserved"),
            "reserved_bytes": held.get("reserved"),
            "nvml_bytes": held.get("nvml"),
            "beside_bytes": held["nvml"] - held["reserved"] if "nvml" in held else None,
            "published_bytes": None if theirs is None else theirs.bytes,
            **{
                key: statistics.median(row[key]) if row.get(key) else None
                for key in ("wall_s", "forward_s")
            },
        }
