"""Published beside ours: the verdict on each run, and predicted memory beside the paper's."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pandas as pd

from bench.errors import UserError
from bench.record import Record
from bench.report import figures
from bench.report.load_records import Entry, published_rows, values
from bench.report.section import Section, image, section, table

POINTS = (0.5, 1.0, 2.0)
"""mIoU is reproduced within the first of these that holds; beyond the last it is not. A plot can be
read to about 0.3 points, and no paper seen gives its spread over seeds."""
SHARES = (0.05, 0.15)
"""The same for memory, as a share of what is published."""


def verdict_section(entries: Sequence[Entry], runs: pd.DataFrame) -> Section:
    """One line a run with a `published` row, in the suite's order; empty where the suite has none.

    mIoU is compared by the run's own definition where it states one, else by the official one,
    which the paper's numbers come from; memory by the process total (NVML), as in the paper, and
    never by a figure of another kind.

    Args:
        runs: the table of all runs.

    Raises:
        UserError: a run names a row that bench/published.csv does not have.
    """
    known, own = published_rows(), {row.run: row for _, row in runs.iterrows()}
    lines = []
    for entry in entries:
        key = entry.run.published
        if key is not None and key not in known:
            raise UserError(
                f"params.yaml: runs.{entry.name}.published is {key!r}, but bench/published.csv has "
                "no such METHOD / inference, or only a recalled one."
            )
        if key is not None:
            lines.append(_verdicts(entry, known[key], own[entry.name]))
    frame = table(
        lines,
        "run network published dataset confidence published_miou miou definition "
        "difference_points verdict published_bytes nvml_bytes memory_ratio memory_verdict",
    )
    drawn = image("published", partial(figures.charts.published, frame))
    return section(
        "published", rows=frame, figures=(drawn,) if frame.published_bytes.notna().any() else ()
    )


def predicted_section(predicted: Record | None) -> Section:
    """One line a run of the paper's suite, largest first; `ratio` = predicted / published, empty
    where the paper prints no memory."""
    found, known = values(predicted), published_rows()
    rows = []
    for name, one in found.get("runs", {}).items():
        row = known.get(one["published"])
        rows.append(
            {
                **{key: one[key] for key in ("network", "strategy", "published", "at")},
                "run": name,
                "predicted_bytes": one["device_bytes"],
                "predicted_host_bytes": one["host_bytes"],
                "weights_bytes": one["weights_bytes"],
            }
        )
        if row is not None and (row.paper, row.dataset) == ("GLNet", "DeepGlobe"):
            rows[-1] |= {"published_miou": row.miou, "confidence": row.confidence}
            if pd.notna(row.bytes):
                ratio = one["device_bytes"] / row.bytes
                rows[-1] |= {"published_bytes": row.bytes, "ratio": ratio}
    frame = table(
        rows,
        "run network strategy published predicted_bytes predicted_host_bytes weights_bytes "
        "published_bytes ratio published_miou confidence at",
    ).sort_values(["predicted_bytes", "run"], ascending=[False, True], ignore_index=True)
    size = (found.get("height_px", 0), found.get("width_px", 0))
    drawn = image(
        "paper_memory",
        partial(figures.charts.paper_memory, frame, size),
        {"size": size, "definition": found.get("definition", "")},
    )
    return section("predicted", rows=frame, figures=(drawn,) if len(frame) else ())


def explained_section(predicted: Record | None) -> Section:
    """One line a memory figure that the paper prints, in MiB: `predicted_mb` the tensors alone,
    `modelled_mb` everything, by the model fitted to all rows, `ratio` = modelled / published."""
    found = predicted.values.get("published", {}) if predicted else {}
    frame = table(
        found.get("rows", []),
        "row network strategy input_px published_mb predicted_mb modelled_mb ratio note",
    )
    drawn = image("paper_model", partial(figures.charts.paper_model, frame))
    return section(
        "paper_memory",
        rows=frame,
        figures=(drawn,) if len(frame) else (),
        findings=lambda rows: model_sentences(found),
    )


def model_sentences(found: Any) -> list[str]:
    """The model in sentences: its numbers, how far it reaches, and what each variant changes.

    Args:
        found: `published` of the record of the stage `predict`, or empty.
    """
    if not found:
        return []
    fit, rows = found["fit"], found["summary"]
    variants = [
        f"{one['network']} with {', '.join(f'{k} {v}' for k, v in one['choice'].items())} "
        f"({100 * one['median_left_out_error']:.1f} %, rank {one['rank_correlation']:.2f})"
        for one in found["variants"]
    ]
    return [
        f"Published = {fit['context_mb']:.0f} MiB + {fit['holding']:.3f} × reserved + "
        f"{fit['workspace']:.3f} × the unfolded input of the largest convolution: three numbers "
        f"fitted to all {rows['rows']:.0f} rows at once.",
        f"Rank correlation of modelled and published {rows['rank_correlation']:.2f}; median "
        f"error of a row left out of the fit {100 * rows['median_left_out_error']:.1f} "
        f"%; {100 * rows['explained']:.0f} % of the rows are explained within 15 %.",
        f"Other variants, and the same two figures: {'; '.join(variants)}.",
    ]


def _verdicts(entry: Entry, theirs: Any, ours: Any) -> dict[str, Any]:
    definition = "stated" if entry.run.metric else "official"
    line: dict[str, Any] = {
        "run": entry.name,
        "network": entry.network,
        "published": theirs.key,
        "dataset": theirs.dataset,
        "confidence": theirs.confidence,
        "published_miou": theirs.miou,
        "verdict": {"oom": "not reproduced: out of memory", "failed": "failed"}.get(
            entry.status, "not run"
        ),
        "published_bytes": theirs.bytes,
        "memory_verdict": "none published" if pd.isna(theirs.bytes) else "not run",
    }
    if theirs.dataset.lower() != entry.dataset.lower():
        return line | {"verdict": "another data set", "memory_verdict": "another data set"}
    if entry.evaluation:
        miou = ours[f"miou_{definition}"]
        points = 100 * (miou - theirs.miou)
        line |= {"miou": miou, "difference_points": points}
        line["definition"] = "as stated" if definition == "stated" else definition
        line["verdict"] = _closest(abs(points), POINTS, "{:.1f} points")
    if pd.notna(theirs.bytes) and pd.notna(ours.nvml_bytes):
        ratio = ours.nvml_bytes / theirs.bytes
        line |= {"nvml_bytes": ours.nvml_bytes, "memory_ratio": ratio}
        line["memory_verdict"] = _closest(abs(ratio - 1), SHARES, "{:.0%}")
    elif pd.notna(theirs.bytes) and entry.measurement:
        line["memory_verdict"] = "not measured on a GPU"
    return line


def _closest(distance: float, limits: Sequence[float], form: str) -> str:
    """The closest limit that holds."""
    held = [limit for limit in limits if distance <= limit]
    return f"reproduced within {form.format(held[0])}" if held else "not reproduced"
