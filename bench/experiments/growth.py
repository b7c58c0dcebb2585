"""`python -m bench.experiments.growth RUN`: measures time and memory against the size of an image.

Predicts one synthetic GeoTIFF per size, each in a fresh process, and reports the deviations from a
time that is linear in pixels and from a constant memory."""

import argparse
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import rasterio
from rasterio.windows import Window

from bench import cli, record
from bench.config import read_suite
from bench.errors import UserError
from bench.files import write_text
from bench.parallel import Report, run_isolated
from bench.streaming import open_job, predict_file
from bench.tiling import cover
from data.image_header import gdal

SIDES_PX = (2048, 4096, 8192, 16384)
LIMIT_S = 7200.0
CLASSES = 7
TILE_PX = 512
CELL_PX = 16
"""Side of the synthetic image's squares of one colour, which keep the file small."""
SAME = ("settings", "weights", "threads", "isa", "processor")
"""Columns that have one value in all rows of a file."""


def draw(path: Path, side_px: int) -> None:
    """Write a tiled GeoTIFF of coloured squares, tile by tile."""
    rng = np.random.default_rng(side_px)
    profile: dict[str, Any] = {"driver": "GTiff", "dtype": "uint8", "count": 3, "tiled": True}
    profile |= {"height": side_px, "width": side_px, "compress": "deflate"}
    profile |= {"blockxsize": TILE_PX, "blockysize": TILE_PX, "photometric": "rgb"}
    cells = TILE_PX // CELL_PX
    with gdal(), rasterio.open(path, "w", **profile) as file:
        for top, left, height, width in cover((side_px, side_px), (TILE_PX, TILE_PX)):
            small = rng.integers(0, 256, (3, cells, cells), np.uint8)
            tile = small.repeat(CELL_PX, 1).repeat(CELL_PX, 2)
            window = Window(left, top, width, height)
            file.write(tile[:, :height, :width], window=window)


def measure(
    report: Report, run: str, settings: Mapping[str, Any], seed: int | None, side_px: int
) -> None:
    """Predict one synthetic image; reports a row of the table."""
    classes = None if seed is None else CLASSES
    wanted = open_job(run, weights=seed, classes=classes, settings=settings)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        image = Path(folder) / "image.tif"
        draw(image, side_px)
        begun = time.process_time()
        done = predict_file(image, Path(folder) / "mask.tif", wanted)
        cpu_s = time.process_time() - begun
    report(
        {
            "run": run,
            "settings": _said(settings),
            "weights": _weights(seed),
            "height_px": done.height_px,
            "width_px": done.width_px,
            "threads": wanted.compute.threads,
            "isa": wanted.compute.isa,
            "sub_batch": done.sub_batch,
            "wall_s": done.seconds,
            "label_s": done.label_s,
            "cpu_s": cpu_s,
            "megapixels_per_s": done.megapixels_per_s,
            "peak_rss_bytes": done.peak_rss_bytes,
            "predicted_bytes": done.predicted_bytes,
            "processor": record.processor(),
        }
    )


def fit(table: pd.DataFrame, column: str = "wall_s") -> str:
    """One sentence: the fit of seconds = a + b x pixels, its largest error, and the memory's range.

    Args:
        column: `wall_s`, or `cpu_s`, which other load on the machine affects less.
    """
    pixels = (table.height_px * table.width_px / 1e6).to_numpy(float)
    seconds = table[column].to_numpy(float)
    # Relative errors, because absolute ones would weight the largest image most.
    each, begin = np.polyfit(pixels, seconds, 1, w=1 / seconds)
    off = np.abs((begin + each * pixels) / seconds - 1).max()
    memory = table.peak_rss_bytes
    spread = memory.max() / memory.min() - 1
    return (
        f"{column} = {begin:.1f} + {each:.3f} x megapixels, at most {off:.1%} off; peak memory "
        f"{memory.min() / 2**20:.0f} to {memory.max() / 2**20:.0f} MiB, {spread:.1%} apart."
    )


def _refuse_others(path: Path, wanted: Mapping[str, Any]) -> None:
    for row in _earlier(path).to_dict("index").values():
        record.require_same(path, row, wanted)


def _earlier(path: Path) -> pd.DataFrame:
    """The rows of a file, if it is there; those without `isa` were native."""
    rows = pd.read_csv(path, keep_default_na=False) if path.exists() else pd.DataFrame()
    return rows.assign(isa=rows.get("isa", "native"))


def _said(settings: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in settings.items())


def _weights(seed: int | None) -> str:
    return "trained" if seed is None else "random"


def command(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("run", help="a key of the table runs")
    parser.add_argument(
        "--sides", type=cli.positive_int, nargs="+", default=SIDES_PX, help="of images, in px"
    )
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="spec fields")
    parser.add_argument("--random", type=cli.seed, metavar="SEED", help="random weights")


def work(arguments: argparse.Namespace) -> None:
    """Measure time and memory of a run of params.yaml against the size of an image."""
    path = record.RESULTS / "large" / read_suite().machine / f"{arguments.run}.csv"
    settings = dict(map(cli.parse_setting, arguments.set))
    seed = arguments.random
    _refuse_others(path, {"settings": _said(settings), "weights": _weights(seed)})
    for side in arguments.sides:
        outcome = run_isolated(measure, arguments.run, settings, seed, side, limit_s=LIMIT_S)
        if outcome.status != "ok":
            raise UserError(f"{arguments.run} at {side} x {side} px: {outcome.reason}")
        table = merged(path, outcome.reported)
        write_text(path, table.to_csv(index=False))
    print(path)
    if len(table) > 1:
        print(fit(table))
        print(fit(table, "cpu_s"))


def merged(path: Path, row: Mapping[str, Any]) -> pd.DataFrame:
    """Earlier rows and the new one, one row per size; a newer row replaces an older one.

    Raises:
        UserError: an earlier row is of other settings or another processor.
    """
    _refuse_others(path, {key: row[key] for key in SAME})
    table = pd.concat([_earlier(path), pd.DataFrame([row])], ignore_index=True)
    table = table.drop_duplicates(["height_px", "width_px"], keep="last")
    return table.sort_values("height_px", ignore_index=True)


if __name__ == "__main__":
    cli.main(work, command)
