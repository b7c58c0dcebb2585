"""Tables: one line a run, and IoU by class. CSV is raw; Markdown and LaTeX are for people."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bench import metrics
from bench.report import bootstrap, quality_gate, style
from bench.report.evaluations import accuracies, class_lists, matrices, matrix
from bench.report.load_records import Entry

METERS = ("predicted", "allocated", "rss", "nvml", "reserved")
_INTEGERS = (
    "seeds",
    *(f"{meter}_bytes" for meter in METERS),
    "predicted_host_bytes",
    "room_bytes",
    "flops",
    "parameters",
    "height_px",
    "width_px",
)
Columns = Mapping[str, tuple[str, Callable[[Any], str]]]
"""Column -> (heading, how a value reads)."""
COLUMNS = (
    "dataset",
    "run",
    "network",
    "strategy",
    "status",
    "miou",
    "miou_official",
    "predicted_bytes",
    "allocated_bytes",
    "rss_bytes",
    "nvml_bytes",
    "latency_s",
    "reserved_bytes",
    "predicted_host_bytes",
    "megapixels_per_s",
    "parameters",
    "accuracy",
    "miou_low",
    "miou_high",
    "seeds",
    "miou_without_rare",
    "miou_val",
    "miou_stated",
    "share_of_best",
    "latency_spread_s",
    "network_s",
    "flops",
    "room_bytes",
    "device",
    "height_px",
    "width_px",
    "encoder",
    "reason",
)


def runs(entries: Sequence[Entry]) -> pd.DataFrame:
    """One line a run in the suite's order, whatever became of it: shares 0..1, bytes, seconds."""
    rows = [{**_about(e), **_accuracy(e), **_cost(e)} for e in entries]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    frame["share_of_best"] = quality_gate.shares(frame)
    return frame.astype(dict.fromkeys(_INTEGERS, "Int64"))


def classes(entries: Sequence[Entry]) -> pd.DataFrame:
    """IoU by class on test, 0..1, one line an evaluated run; a class that a data set does not have
    or count is empty."""
    rows: list[dict[str, Any]] = []
    for entry in entries:
        if not entry.evaluation:
            continue
        names, ignored, _ = class_lists(entry)
        each = _known_mean(metrics.iou(matrices(entry, "test"), names, ignored))
        accuracy = _accuracy(entry)
        rows.append(
            {"dataset": entry.model.dataset, "run": entry.name}
            | {key: accuracy[key] for key in ("miou", "miou_without_rare")}
            | {name: value for name, value in zip(names, each, strict=True) if name not in ignored}
        )
    frame = pd.DataFrame(rows)
    return frame if rows else pd.DataFrame(columns=["dataset", "run", "miou", "miou_without_rare"])


def axis_meter(frame: pd.DataFrame) -> str:
    """The column of the memory axis: what the card saw if every measured run has it, else the
    tensors alive."""
    measured = frame[frame.allocated_bytes.notna() | frame.nvml_bytes.notna()]
    complete = len(measured) > 0 and bool(measured.nvml_bytes.notna().all())
    return "nvml_bytes" if complete else "allocated_bytes"


def confusions(entries: Sequence[Entry]) -> pd.DataFrame:
    """One line a run, true class and predicted class: the share of the true class's pixels, 0..1,
    over all scenes of test and all seeds; a class without pixels has no line."""
    rows = []
    for entry in entries:
        if not entry.evaluation:
            continue
        names = class_lists(entry)[0]
        for name, counts in zip(names, matrix(entry, "test")[:-1], strict=True):
            pixels = int(counts.sum())
            rows += [
                {"run": entry.name, "truth": name, "predicted": other, "share": int(n) / pixels}
                for other, n in zip(names, counts, strict=True)
                if pixels
            ]
    return pd.DataFrame(rows, columns=["run", "truth", "predicted", "share"])


def metrics_json(frame: pd.DataFrame) -> dict[str, dict[str, float]]:
    """What `dvc metrics` and `dvc exp show` print: accuracy, memory by the meter of the axis, and
    time, each by run; in units that people read. tables/runs.csv has the rest, and is raw."""
    meter = axis_meter(frame)
    chosen = {
        "miou_percent": ("miou", 100.0),
        f"{meter.removesuffix('_bytes')}_mib": (meter, 2.0**-20),
        "latency_ms": ("latency_s", 1e3),
    }
    known = frame.set_index("run")
    return {
        name: {str(run): float(v) * factor for run, v in known[column].items() if pd.notna(v)}
        for name, (column, factor) in chosen.items()
    }


def for_people(frame: pd.DataFrame, columns: Columns) -> pd.DataFrame:
    """Chosen columns as text, under their headings; a column in which nothing is known is left
    out."""
    known = {name: rest for name, rest in columns.items() if frame[name].notna().any()}
    return pd.DataFrame(
        {heading: frame[name].map(form) for name, (heading, form) in known.items()}, dtype=object
    )


def run_columns() -> Columns:
    """How a line of `runs` reads."""
    memory = {
        f"{meter}_bytes": (meter, style.size) for meter in ("allocated", "nvml", "rss", "predicted")
    }
    return {
        "run": ("run", str),
        "strategy": ("strategy", str),
        "miou": ("mIoU %", style.percent),
        "miou_low": ("from", style.percent),
        "miou_high": ("to", style.percent),
        "miou_without_rare": ("without rare", style.percent),
        "miou_official": ("official", style.percent),
        "miou_stated": ("as stated", style.percent),
        "miou_val": ("on val", style.percent),
        **memory,
        "share_of_best": ("of best %", style.percent),
        "latency_s": ("latency", style.duration),
        "latency_spread_s": ("spread", style.duration),
        "network_s": ("network alone", style.duration),
        "parameters": ("parameters", style.count),
        "status": ("status", str),
    }


def class_columns(frame: pd.DataFrame) -> Columns:
    """How a line of `classes` reads: every number is a share."""
    heading = {"miou": "mIoU", "miou_without_rare": "without rare"}
    named = [str(name) for name in frame.columns if name not in ("dataset", "run")]
    shares = {name: (heading.get(name, name.replace("_", " ")), style.percent) for name in named}
    return {"run": ("run", str), **shares}


def by_accuracy(frame: pd.DataFrame) -> pd.DataFrame:
    """Best first; runs without an accuracy last, in the suite's order."""
    return frame.sort_values("miou", ascending=False, na_position="last", kind="stable")


def files(raw: pd.DataFrame, readable: pd.DataFrame, caption: str) -> dict[str, str]:
    """Extension -> content: CSV in full precision, Markdown, and LaTeX with booktabs."""
    markdown = readable.map(lambda cell: str(cell).replace("|", "\\|"))
    latex = readable.map(lambda cell: str(cell).replace(style.NOTHING, "--"))
    align = ["right" if _numeric(readable[name]) else "left" for name in readable.columns]
    letters = "".join(side[0] for side in align)
    return {
        "csv": raw.to_csv(index=False, lineterminator="\n"),
        "md": markdown.to_markdown(index=False, disable_numparse=True, colalign=align) + "\n",
        "tex": latex.to_latex(index=False, escape=True, column_format=letters, caption=caption),
    }


def _about(entry: Entry) -> dict[str, Any]:
    return {
        "dataset": entry.model.dataset,
        "run": entry.name,
        "network": entry.network,
        "strategy": entry.run.strategy,
        "encoder": entry.model.spec.get("encoder"),
        "status": entry.status,
        "reason": entry.reason or None,
    }


def _accuracy(entry: Entry) -> dict[str, Any]:
    if not entry.evaluation:
        return {}
    one = bootstrap.interval(bootstrap.sample(entry.name, entry.run.model, entry.evaluation))
    values = accuracies(entry, "test") | {
        "miou_low": one.low,
        "miou_high": one.high,
        "seeds": 1 + len(entry.evaluation.get("other_seeds", {})),
        "accuracy": metrics.accuracy(matrix(entry, "test")),
    }
    if entry.evaluation["splits"].get("val"):
        values["miou_val"] = accuracies(entry, "val")["miou"]
    return values


def _known_mean(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the seeds that know a class; NaN where none does."""
    known = ~np.isnan(shares)
    means: NDArray[np.float64] = np.full(shares.shape[1:], np.nan)
    total, number = np.where(known, shares, 0.0).sum(0), known.sum(0)
    np.divide(total, number, out=means, where=number > 0)
    return means


def _cost(entry: Entry) -> dict[str, Any]:
    values = entry.measurement
    if not values:  # what the process told before its end
        told = entry.measured.values if entry.measured else {}
        return {name: told.get(name) for name in ("device", "room_bytes")}
    meters = values["meters"]
    latency = statistics.median(values["latency_s"]) if values["latency_s"] else None
    alone = values.get("network_s")
    pixels = values["height_px"] * values["width_px"]
    named = ("parameters", "flops", "device", "room_bytes", "height_px", "width_px")
    return {
        **{f"{name}_bytes": meters[name]["bytes"] for name in METERS if name in meters},
        "predicted_host_bytes": meters.get("predicted", {}).get("host_bytes"),
        "latency_s": latency,
        "latency_spread_s": _spread(values["latency_s"]),
        "network_s": statistics.median(alone) if alone else None,
        "megapixels_per_s": pixels / 1e6 / latency if latency else None,
        **{name: values.get(name) for name in named},
    }


def _spread(seconds: Sequence[float]) -> float | None:
    """From the fastest to the slowest repetition."""
    return max(seconds) - min(seconds) if len(seconds) > 1 else None


def _numeric(texts: pd.Series) -> bool:
    """Whether a column of texts reads as numbers, so that it stands flush right."""
    return bool(texts.map(lambda text: text[:1].isdigit() or text == style.NOTHING).all())
