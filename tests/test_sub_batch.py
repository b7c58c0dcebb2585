"""Latency and memory against the number of patches at once: measured, recorded, drawn."""

import argparse
from pathlib import Path

import numpy as np
import pytest

from bench import record
from bench.config import PARAMS, read_suite
from bench.errors import UserError
from bench.experiments.sub_batch import SIZES, patches_of, points, work
from bench.report.memory import sub_batch_section
from bench.run import open_run


def chosen(*runs: str, side: int = 80) -> argparse.Namespace:
    return argparse.Namespace(run=[*runs], suite=PARAMS, side=side)


def test_runs_by_patches_are_measured_at_each_number_of_patches(project: Path) -> None:
    """Patches of 32 px that overlap by 8: nine in an image of 80 px."""
    work(chosen("unet-patch", "unet-whole"))
    found = record.read(record.RESULTS / "sub_batch" / "test-machine.json")
    rows = {row["key"]: row for row in found.values["rows"]}
    assert list(rows) == [f"unet-patch {size}" for size in SIZES if size <= 9]
    for row in rows.values():
        assert row["predicted_bytes"] == pytest.approx(row["allocated_bytes"], rel=0.05)
        assert len(row["wall_s"]) == len(row["processor_s"]) > 1
    sizes = [row["allocated_bytes"] for row in rows.values()]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]
    section = sub_batch_section(found)
    assert list(section.rows.sub_batch) == [1, 2, 4, 8]
    image = section.figures[0]
    assert image.draw  # type: ignore[union-attr]
    axes = image.draw().axes[0]  # type: ignore[union-attr]
    drawn = [np.shape(one.get_offsets())[0] for one in axes.collections]
    assert sum(drawn) == 2 * len(rows), "measured and predicted"


def test_each_point_is_a_run_of_its_own(project: Path) -> None:
    runs = [open_run(read_suite(), name, classes=3) for name in read_suite().runs]
    by_patches = [run.name for run in runs if patches_of(run, 80)]
    assert "glnet-collaborative" in by_patches
    assert "glnet-local" in by_patches
    assert not {"unet-whole", "unet-downsample", "glnet-global", "colour"} & {*by_patches}
    for run in points(runs, 80):
        assert run.spec.sub_batch == run.config.overrides["sub_batch"]


def test_runs_without_patches_are_refused(project: Path) -> None:
    with pytest.raises(UserError, match="No run of unet-whole works by patches"):
        work(chosen("unet-whole"))


def test_no_record_is_a_table_without_lines() -> None:
    assert sub_batch_section(None).rows.empty
    assert not sub_batch_section(None).figures
