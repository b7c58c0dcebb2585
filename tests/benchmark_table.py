"""What `pytest --benchmark-only` prints: a table per kind of time, a row per run, the fastest first."""

import statistics
from collections.abc import Iterable
from typing import Any

from tabulate import tabulate

from bench.latency import NETWORK

END_TO_END = "End to end: image in memory to labels in memory"
NETWORK_ALONE = "Of it, inside the network"
FORWARD = "One forward pass over noise at 0.8 of the sides, as ISDNet's speed was published"
FILES = "Image file to label file, by windows: a small GLNet"
HEADS = "GLNet at the paper's widths, with each of its heads"
TITLES = (END_TO_END, NETWORK_ALONE, FORWARD, FILES, HEADS)
HEADERS = ("run", "image, px", "median, ms", "fastest", "slowest", "megapixels/s", "peak MiB")


def tables(benchmarks: Iterable[Any]) -> str:
    """The finished benchmarks of a session as text; empty if there are none."""
    rows: dict[str, list[tuple[float, list[str]]]] = {title: [] for title in TITLES}
    for one in benchmarks:
        for title, seconds in kinds(one):
            rows[title].append((statistics.median(seconds), cells(one, seconds)))
    parts = []
    for title, found in rows.items():
        lines = [line for _, line in sorted(found)]
        used = [n for n in range(len(HEADERS)) if any(line[n] for line in lines)]
        shown = [[line[n] for n in used] for line in lines]
        headers = [HEADERS[n] for n in used]
        align = ["left", *["right"] * (len(used) - 1)]
        if shown:
            table = tabulate(shown, headers, disable_numparse=True, colalign=align)
            parts.append(f"{title}\n\n{table}")
    return "\n\n".join(parts)


def kinds(benchmark: Any) -> list[tuple[str, list[float]]]:
    """Kinds of time that a benchmark measured, with the seconds of each round."""
    seconds = benchmark.stats.data
    part = benchmark.params.get("part")
    if part is None:
        return [(HEADS if "path" in benchmark.params else FILES, seconds)]
    title = {"end-to-end": END_TO_END, "network-alone": NETWORK_ALONE}.get(part, FORWARD)
    both = benchmark.extra_info.get(NETWORK)
    return [(title, seconds), *([(NETWORK_ALONE, both)] if both else [])]


def cells(benchmark: Any, seconds: list[float]) -> list[str]:
    """The row of a benchmark."""
    info = benchmark.extra_info
    height, width = info["height_px"], info["width_px"]
    median = statistics.median(seconds)
    peak = info.get("allocated_bytes") if seconds is benchmark.stats.data else None
    return [
        benchmark.params.get("run") or benchmark.params.get("path", ""),
        f"{height} x {width}",
        *(_number(1e3 * one) for one in (median, min(seconds), max(seconds))),
        _number(height * width / 1e6 / median),
        _number(peak / 2**20) if peak else "",
    ]


def _number(value: float) -> str:
    """Three significant digits, and no fewer before the point than there are."""
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"
