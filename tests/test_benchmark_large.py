"""`pytest --benchmark-only`: from an image file to a label file at three sizes, by windows; a small
network with random weights, so that what is read, kept and written shows beside it."""

from pathlib import Path
from typing import Any

import pytest
from test_large_files import job_of

from bench.experiments.growth import draw
from bench.streaming import predict_file

SIDES_PX = (256, 512, 1024)
BRIEF_PX = 96
"""Where nothing is timed."""


@pytest.mark.parametrize("side_px", SIDES_PX)
def test_predict_file(benchmark: Any, side_px: int, tmp_path: Path) -> None:
    side = side_px if benchmark.enabled else BRIEF_PX
    draw(tmp_path / "image.tif", side)
    job = job_of("glnet", "collaborative", patch_px=256, global_px=256, overlap_px=32)

    def predict() -> None:
        predict_file(tmp_path / "image.tif", tmp_path / "labels.tif", job, silent=True)

    benchmark.pedantic(predict, rounds=3)
    assert (tmp_path / "labels.tif").stat().st_size > 0
    if benchmark.stats:
        benchmark.extra_info |= {
            "megapixels_per_s": side**2 / 1e6 / benchmark.stats.stats.median,
            "height_px": side,
            "width_px": side,
            "threads": job.compute.threads,
            "weights": "random",
        }
