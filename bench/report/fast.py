"""What collapsed heads save, one line a path and image side."""

import statistics
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from bench.record import Record
from bench.report import style

PATHS = ("plain", "collapsed")
COLUMNS = (
    "path",
    "height_px",
    "width_px",
    "threads",
    "flops",
    "wall_s",
    "network_s",
    "peak_rss_bytes",
    "predicted_bytes",
    "predicted_weights_bytes",
    "labels_equal_share",
)
READABLE: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "path": ("path", str),
    "height_px": ("side px", str),
    "threads": ("threads", str),
    "flops": ("TFLOP", lambda v: f"{v / 1e12:.2f}"),
    "wall_s": ("seconds", "{:.1f}".format),
    "network_s": ("of them in the network", "{:.1f}".format),
    "peak_rss_bytes": ("peak RSS", style.size),
    "predicted_bytes": ("predicted on a card", style.size),
    "predicted_weights_bytes": ("of it weights", style.size),
    "labels_equal_share": ("labels as plain", lambda v: f"{100 * v:.4f} %"),
}


def rows(record: Record | None) -> pd.DataFrame:
    """Medians over the repetitions of time, the most of memory."""
    found = []
    for side, paths in (record.values["sides"] if record else {}).items():
        for path in PATHS:  # a record has its keys in the order of the alphabet
            one = paths[path]
            repetitions = one["repetitions"]
            assert record is not None
            found.append(
                {
                    "path": path,
                    "height_px": int(side),
                    "width_px": int(side),
                    "threads": record.provenance["threads"],
                    "flops": one["predicted"]["flops"],
                    "wall_s": statistics.median(each["wall_s"] for each in repetitions),
                    "network_s": statistics.median(each["network_s"] for each in repetitions),
                    "peak_rss_bytes": max(each["peak_rss_bytes"] for each in repetitions),
                    "predicted_bytes": one["predicted"]["device_bytes"],
                    "predicted_weights_bytes": one["predicted"]["weights_bytes"],
                    "labels_equal_share": one["labels_equal_share"],
                }
            )
    return pd.DataFrame(found, columns=list(COLUMNS))
