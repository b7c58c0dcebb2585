"""Memory, predicted without a GPU: beside what papers print and what allocators report, over the size
of an image, on real GPUs, and of GLNet's collapsed head."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from bench.memory.gpu_overhead import blas_bytes
from bench.report import figures
from bench.report.load_records import (
    MB,
    Inputs,
    Record,
    median,
    method_name,
    published_key,
    published_rows,
    values,
)
from bench.report.section import Section, section, sentences, table

INFERENCE = "inference"
LEAD = "paper_accuracy"
"""The table and figure that the page above all suites begins with."""
WITHIN = 0.02
CLOSE = (0.05, 0.15)
"""Shares of the published memory that a prediction may be off by."""
PATHS = ("plain", "collapsed")
ROUNDING = 0.01
"""Of a quantity: a smaller change is no growth."""
CONSTANT = 0.05
"""Growth with a smaller exponent of the number of pixels is called constant."""
Line = Mapping[str, int]


def predicted_section(predicted: Record | None) -> Section:
    """One line a run of the paper's suite, largest first; `ratio` = predicted / published, empty
    where the paper prints no memory."""
    found, known = values(predicted), published_rows()
    runs = found.get("runs", {}).items()
    rows = [{"run": name, **one, **known.get(one["published"], {})} for name, one in runs]
    frame = table("predicted", rows).sort_values(
        ["predicted_bytes", "run"], ascending=[False, True], ignore_index=True
    )
    size = (found.get("height_px", 0), found.get("width_px", 0))
    fill = {"size": size, "definition": found.get("definition", "")}
    draw = partial(figures.charts.paper_memory, frame, size)
    return section("predicted", frame, draw=draw, fill=fill)


def explained_section(predicted: Record | None) -> Section:
    """One line a memory figure that the paper prints, in MiB: `predicted_mb` the tensors alone,
    `modelled_mb` everything, by the model fitted to all rows, `ratio` = modelled / published."""
    found = predicted.values.get("published", {}) if predicted else {}
    said = sentences("paper_memory", **found) if found else ()
    frame = table("paper_memory", found.get("rows", []))
    draw = partial(figures.charts.paper_model, frame)
    return section("paper_memory", frame, draw=draw, findings=said)


def allocator_section(inputs: Inputs) -> Section:
    """Predicted memory beside what the device's allocator reports: one line a measured run and
    image size, then one a training phase, in the suite's order; `ratio` predicted / allocated."""
    rows: list[dict[str, Any]] = []
    for entry in inputs.entries:
        if found := entry.measurement:
            predicted, common = entry.meters["predicted"], {"run": entry.name, "phase": INFERENCE}
            whole = {
                "predicted_bytes": predicted.get("expected_allocated_bytes")
                or predicted.get("allocated_bytes")
                or predicted["bytes"],
                "allocated_bytes": entry.meters["allocated"]["bytes"],
            }
            rows.append({**found, **whole, **common})
            if found.get("part"):
                rows.append({**found["part"], **common, "device": found["device"]})
    steps = values(inputs.steps)
    rows += [
        {**found, "run": model, "phase": phase, "device": steps["device"]}
        for model, phases in steps.get("models", {}).items()
        for phase, found in phases.items()
    ]
    frame = table("prediction", rows)
    off = 100 * (frame.ratio - 1).abs()
    said = []
    if len(frame):
        worst = frame.iloc[int(off.argmax())]
        errors = {"median": off.median(), "most": off.max(), "worst": worst}
        said = sentences("prediction", count=len(frame), **errors)
    return section("prediction", frame, findings=said)


def estimates_section(record: Record | None) -> Section:
    """Networks of other projects, one line a network and condition: what was allocated, and what
    several tools say; `ratio` = predicted here / allocated."""
    frame = table("estimates", values(record).get("rows", []))
    tools = []
    for tool in figures.charts.TOOLS:
        ratio = (frame[f"{tool}_bytes"] / frame.allocated_bytes).dropna().astype(float)
        if len(ratio):
            off = 100 * (ratio - 1).abs()
            tools.append({"tool": tool, "count": len(off), "off": off})
    said = sentences("estimates", tools=tools) if tools else []
    draw = partial(figures.charts.estimates, frame)
    return section("estimates", frame, draw=draw, findings=said)


def growth_sections(predicted: Record | None) -> list[Section]:
    """How memory and operations grow with the image: the fits, and (a file alone) the points."""
    points = growth_points(predicted)
    columns: dict[str, Any] = {"run": None}
    for name, (heading, unit) in figures.charts.QUANTITIES.items():
        of = heading.split(" ")[0] if unit == "B" else ""
        columns[name] = (heading, lambda v: f"{law(v)} ({abs(v):.2f})")
        slope = (f"{of} {unit} a pixel".strip(), lambda v: f"{max(v, 0):,.0f}")
        columns[f"{name}_a_pixel"] = slope
    draw = partial(figures.charts.growth, points)
    laws = section("growth_law", growth_laws(points), columns, draw)
    return [laws, section("growth", points)]


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
    return table("growth", rows)


def growth_laws(points: pd.DataFrame) -> pd.DataFrame:
    """One line a run: the exponent with which each quantity grows with the number of pixels, by
    least squares on the logarithms of the larger half of the sizes, and what a further pixel costs
    there."""
    rows = []
    for run, own in points.groupby("run", sort=False):
        own = own.iloc[-max(2, (len(own) + 1) // 2) :]
        pixels = own.side_px.to_numpy(float) ** 2
        row: dict[str, Any] = {"run": run}
        for name in figures.charts.QUANTITIES:
            found = own[name].to_numpy(float)
            # Rounded, and 0 for -0: the last digits of a fit differ by processor.
            row[name] = round(float(np.polyfit(np.log(pixels), np.log(found), 1)[0]), 9) + 0.0
            row[f"{name}_a_pixel"] = round(float(np.polyfit(pixels, found, 1)[0]), 6) + 0.0
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
            done = pd.DataFrame(paths[path]["repetitions"])
            rows.append(
                {
                    **paths[path],
                    **done[["wall_s", "network_s"]].median(),
                    "path": path,
                    "side_px": int(side),
                    "threads": record and record.provenance.get("threads"),
                    "peak_rss_bytes": done.peak_rss_bytes.max(),
                }
            )
    return section("collapsed_head", rows)


def sub_batch_section(record: Record | None) -> Section:
    """Latency and memory of strategies by patches, one line a run and number of patches at once:
    medians of time."""
    rows = [
        {"run": row["kind"], **row["others"], **row, "latency_s": median(row["wall_s"])}
        for row in values(record).get("rows", [])
    ]
    frame = table("sub_batch", rows).sort_values(["run", "sub_batch"], ignore_index=True)
    return section("sub_batch", frame, draw=partial(figures.curves.sub_batch, frame))


def gpu_section(records: Sequence[Record]) -> Section:
    """Published settings on real GPUs: one line a run, a variant and an image size.

    `tensors_bytes` is what is predicted of tensors alone, `predicted_bytes` what torch's allocator
    should report on a GPU with TF32, both by the code that was measured; `ratio` that /
    `allocated_bytes`, `beside_bytes` the process total (NVML) beside the allocator's segments.

    Args:
        records: of `bench.experiments.gpu_memory`.
    """
    frame = table("on_card", (line for record in records for line in _on_gpu(record)))
    draw = partial(figures.charts.on_gpu, frame)
    return section("on_card", frame, draw=draw, findings=gpu_sentences(frame))


def gpu_sentences(frame: pd.DataFrame) -> list[str]:
    """What the lines of `gpu_section` say together, a sentence each."""
    known = frame.dropna(subset=["ratio"])
    if known.empty:
        return []
    off = (known.ratio - 1).abs()
    bare = (known.tensors_bytes / known.allocated_bytes - 1).abs()
    return sentences(
        "on_card",
        count=len(known),
        limit=f"{WITHIN:.0%}",
        within=(off <= WITHIN).sum(),
        bare=(bare <= WITHIN).sum(),
        far=known[off > WITHIN].to_dict("records"),
        beside=frame.beside_bytes.dropna(),
    )


def paper_accuracy_section(on_gpu: pd.DataFrame, predicted: pd.DataFrame) -> Section:
    """Figure 1 (a) of the paper with memory as a GPU holds it, or is predicted to: one line a published
    setting on DeepGlobe, with its mIoU as published; `ratio` = process total (NVML) / published memory.

    Args:
        on_gpu: the rows of `gpu_section`. Of several variants the released one is taken, of several
            GPUs the first.
        predicted: the rows of `predicted_section`, which are taken where no GPU was measured.
    """
    rows = predicted.assign(card="no GPU", done="")
    if len(on_gpu):
        rows = on_gpu[on_gpu.card == on_gpu.card.iloc[0]].dropna(subset=["nvml_bytes"])
    rows = rows.dropna(subset=["published_miou"])
    first = rows.done.map({"as released": 0, "corrected": 2}).fillna(1).sort_values(kind="stable")
    rows = rows.loc[first.index].drop_duplicates(["published"])
    rows = rows.assign(network=rows.run.map(lambda run: run.partition("-")[0]))
    frame = table(LEAD, rows.to_dict("records")).sort_values(
        "published_miou", ascending=False, kind="stable", ignore_index=True
    )
    known = frame.dropna(subset=["ratio"])
    said = sentences(
        LEAD,
        count=len(known),
        limit=f"{100 * CLOSE[-1]:.0f} %",
        within=((known.ratio - 1).abs() <= CLOSE[-1]).sum(),
        far=known[known.ratio > 2].sort_values("ratio", ascending=False).to_dict("records"),
    )
    draw = partial(figures.charts.paper_accuracy, frame)
    plots = (figures.charts.paper_plot(frame),) if len(frame) else ()
    return section(LEAD, frame, draw=draw, figures=plots, findings=said if len(known) else ())


def uhr_section(predicted: Record | None) -> Section:
    """One line a method, a variant and an image size: predicted and published memory, their ratio,
    and a verdict.

    Args:
        predicted: the record of the stage that predicts the ultra-high-resolution methods.
    """
    found, known, rows = values(predicted), published_rows(), []
    for row in found.get("rows", []):
        key = row["published"] or published_key(row["method"], row["strategy"])
        if row["dataset"] != "DeepGlobe":
            method, _, inference = key.partition(" / ")
            key = f"{method.split()[0]} on {row['dataset'].split()[0]} / {inference}"
        theirs = known.get(key, {})
        own = {"verdict": verdict(row, theirs.get("published_bytes"))}
        rows.append({**row, **theirs, **own})
    frame = table("uhr_memory", rows)
    met = frame.verdict.astype(str).str.startswith("within").sum()
    said = {"limit": f"{CLOSE[-1]:.0%}", "met": met, "count": frame.ratio.count()}
    fill = {"definition": found.get("definition", "")}
    return section(
        "uhr_memory", frame, fill=fill, findings=sentences("uhr_memory", **said) if rows else ()
    )


def verdict(row: Mapping[str, Any], printed: Any) -> str:
    """Whether the tensors alone explain a published figure, and if not, what would have to be true.

    Args:
        row: of the record.
        printed: published bytes; None or NA if there are none.
    """
    if pd.isna(printed):
        return "none published"
    predicted, weights = row["device_bytes"], row["weights_bytes"]
    for share in CLOSE:
        if abs(predicted / printed - 1) <= share:
            return f"within {share:.0%}"
    off = abs(predicted - printed) / MB
    if predicted < printed:
        rest = (printed - (row["reserved_bytes"] or predicted)) / MB
        if rest <= 0:
            return f"{off:.0f} MiB more, which is within what an allocator keeps reserved"
        return (
            f"{off:.0f} MiB more: {rest:.0f} MiB of context and workspace beside what is reserved"
        )
    reason = "a smaller patch or network"
    if row["strategy"] == "whole" and printed > weights:
        scale = ((printed - weights) / (predicted - weights)) ** 0.5
        reason = f"an image of {scale:.2f} of these sides at most, or leaner maps"
    elif weights >= printed:
        reason = "fewer weights, which alone are more"
    return f"{off:.0f} MiB less: {reason}"


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


def _on_gpu(record: Record) -> Iterator[dict[str, Any]]:
    printed = published_rows()
    name = str(record.provenance.get("device_name", record.name))
    for row in record.values["rows"]:
        predicted = row.get("predicted", {})
        with_copies = {
            f"predicted_{what}bytes": predicted[key] + blas_bytes(name)
            for what, key in (("", "tf32_allocated_bytes"), ("reserved_", "tf32_reserved_bytes"))
            if predicted.get(key)
        }
        yield {
            **(printed.get(row["published"], {}) if row["dataset"] == "DeepGlobe" else {}),
            **row,
            **with_copies,
            "card": name,
            "method": method_name(row["method"]),
            "wall_s": median(row.get("wall_s")),
            "forward_s": median(row.get("forward_s")),
        }
