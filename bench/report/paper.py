"""Predicted device memory at the paper's size beside what the GLNet paper prints."""

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from bench.record import Record
from bench.report import style
from bench.report.load_records import MB, published

COLUMNS = (
    "run",
    "network",
    "strategy",
    "published",
    "predicted_bytes",
    "predicted_host_bytes",
    "weights_bytes",
    "published_bytes",
    "ratio",
    "published_miou",
    "confidence",
    "at",
)
READABLE: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "run": ("run", str),
    "published": ("published as", lambda v: style.NOTHING if pd.isna(v) else str(v)),
    "predicted_bytes": ("predicted", style.size),
    "published_bytes": ("published", style.size),
    "ratio": ("ratio", lambda v: style.NOTHING if pd.isna(v) else f"{v:.2f}"),
    "weights_bytes": ("of it weights", style.size),
    "predicted_host_bytes": ("on the host", style.size),
    "published_miou": ("published mIoU %", style.percent),
    "confidence": (
        "number",
        lambda v: {"figure": "off a plot", "exact": "printed"}.get(v, style.NOTHING),
    ),
}
EXPLAINED_READABLE: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "row": ("published as", str),
    "network": ("network", str),
    "strategy": ("strategy", str),
    "input_px": ("input px", str),
    "published_mb": ("published MiB", "{:.0f}".format),
    "predicted_mb": ("tensors", "{:.0f}".format),
    "modelled_mb": ("modelled", "{:.0f}".format),
    "ratio": ("ratio", "{:.2f}".format),
    "note": ("", str),
}


def compare(predicted: Record | None) -> pd.DataFrame:
    """One line a run of the paper's suite, dearest first; `ratio` = predicted / published, empty
    where the paper prints no memory."""
    if predicted is None or predicted.status != "ok":
        return pd.DataFrame(columns=list(COLUMNS))
    numbers = published().query("paper == 'GLNet' and dataset == 'DeepGlobe'")
    keys = numbers.method + " / " + numbers.inference
    known = {key: row for key, (_, row) in zip(keys, numbers.iterrows(), strict=True)}
    rows = [
        _line(name, values, known.get(values["published"]))
        for name, values in predicted.values["runs"].items()
    ]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    integers = [name for name in COLUMNS if name.endswith("_bytes")]
    return frame.astype(dict.fromkeys(integers, "Int64")).sort_values(
        ["predicted_bytes", "run"], ascending=[False, True], ignore_index=True
    )


EXPLAINED_COLUMNS = (
    "row",
    "network",
    "strategy",
    "input_px",
    "published_mb",
    "predicted_mb",
    "modelled_mb",
    "ratio",
    "note",
)


def explained(predicted: Record | None) -> pd.DataFrame:
    """One line a memory figure that the paper prints, in MiB: `predicted_mb` the tensors alone,
    `modelled_mb` everything, by the model fitted to all rows, `ratio` = modelled / published."""
    found = predicted.values.get("published", {}) if predicted else {}
    return pd.DataFrame(found.get("rows", []), columns=list(EXPLAINED_COLUMNS))


def model(predicted: Record | None) -> list[str]:
    """The model in sentences: its numbers, how far it reaches, and what each variant changes."""
    found = predicted.values.get("published", {}) if predicted else {}
    if not found:
        return []
    fit, all_rows = found["fit"], found["summary"]
    sentences = [
        f"Published = {fit['context_mb']:.0f} MiB + {fit['holding']:.3f} × reserved + "
        f"{fit['workspace']:.3f} × the unfolded input of the largest convolution: three numbers "
        f"fitted to all {all_rows['rows']:.0f} rows at once.",
        f"Rank correlation of modelled and published {all_rows['rank_correlation']:.2f}; median "
        f"error of a row that is left out of the fit {100 * all_rows['median_left_out_error']:.1f} "
        f"%; {100 * all_rows['explained']:.0f} % of the rows are explained within 15 %.",
    ]
    better = [
        f"{one['network']} with {', '.join(f'{k} {v}' for k, v in one['choice'].items())} "
        f"({100 * one['median_left_out_error']:.1f} %, rank {one['rank_correlation']:.2f})"
        for one in found["variants"]
    ]
    return [*sentences, f"Other variants, and the same two figures: {'; '.join(better)}."]


def _line(name: str, values: dict[str, Any], row: Any) -> dict[str, Any]:
    line = {
        "run": name,
        "network": values["network"],
        "strategy": values["strategy"],
        "published": values["published"],
        "predicted_bytes": values["device_bytes"],
        "predicted_host_bytes": values["host_bytes"],
        "weights_bytes": values["weights_bytes"],
        "at": values["at"],
    }
    if row is not None:
        line["published_miou"] = row.miou_percent / 100
        line["confidence"] = row.confidence
        if pd.notna(row.memory_mb):
            line["published_bytes"] = int(row.memory_mb) * MB
            line["ratio"] = values["device_bytes"] / line["published_bytes"]
    return line
