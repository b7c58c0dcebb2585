"""Bands of one image give the labels of one process, bit by bit."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_large_files import job_of, pixels, read, tiff

from bench.commands.predict import _outputs
from bench.errors import UserError
from bench.streaming import Job, predict_file
from bench.streaming.bands import Rows, Spread, Step, label_band


@dataclass(frozen=True)
class Here(Spread):
    """Labels bands of some rows in this process, the last one first."""

    rows: int = 1

    def bands(self, count: int) -> list[Rows]:
        return [(row, min(row + self.rows, count)) for row in range(0, count, self.rows)]


def here(output: Path, rows: int, steps: list[Step]) -> Here:
    def label(job: Job, step: Step, missing: Sequence[Rows]) -> None:
        steps.append(step)
        for rows in reversed(missing):
            label_band(output, job, step, rows)

    return Here(1, label, rows)


@pytest.mark.parametrize("rows", [1, 2, 9])
@pytest.mark.parametrize(
    ("method", "strategy", "more"),
    [
        ("baselines/generic", "patch", {}),
        ("baselines/generic", "patch", {"sub_batch": 2, "blend": "gaussian"}),
        # Four rows of patches over one pixel, and groups that reach from one band into the next.
        ("baselines/generic", "patch", {"overlap_px": 20, "sub_batch": 7}),
        ("glnet", "local", {"phases": ["local"]}),
        ("glnet", "global-to-local", {"sub_batch": 3}),
        ("glnet", "collaborative", {"sub_batch": 3}),
        ("glnet", "collaborative", {"sub_batch": 2, "head": "collapsed"}),
        ("baselines/sgnet", "surround", {}),
    ],
)
def test_bands_give_the_labels_of_one_process(
    method: str, strategy: str, more: dict[str, Any], rows: int, tmp_path: Path
) -> None:
    job = job_of(method, strategy, **more)
    image = tiff(tmp_path / "a.tif", pixels().transpose(2, 0, 1), photometric="rgb")
    predict_file(image, tmp_path / "one.tif", job, silent=True)
    steps: list[Step] = []
    output = tmp_path / "bands.tif"
    predict_file(image, output, job, silent=True, spread=here(output, rows, steps))
    assert np.array_equal(read(output), read(tmp_path / "one.tif"))
    assert steps == (["maps"] if strategy == "collaborative" else []) + ["labels"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", "bands.tif", "one.tif"]


def test_a_worker_that_would_label_otherwise_is_refused(tmp_path: Path) -> None:
    job = job_of()
    image = tiff(tmp_path / "a.tif", pixels().transpose(2, 0, 1), photometric="rgb")

    def label(job: Job, step: Step, missing: Sequence[Rows]) -> None:
        label_band(tmp_path / "labels.tif", replace(job, weights=1), step, missing[0])

    with pytest.raises(UserError, match=r"This worker has weights .* but .*labels.tif was begun"):
        predict_file(image, tmp_path / "labels.tif", job, silent=True, spread=Spread(1, label))
    assert not (tmp_path / "labels.tif").exists()


def test_a_strategy_without_windows_has_no_bands(tmp_path: Path) -> None:
    image = tiff(tmp_path / "a.tif", pixels().transpose(2, 0, 1), photometric="rgb")
    with pytest.raises(UserError, match=r"Strategy whole .* several images"):
        predict_file(
            image,
            tmp_path / "labels.tif",
            job_of(strategy="whole"),
            silent=True,
            spread=here(tmp_path, 1, []),
        )
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]


def test_bands_are_as_many_as_workers_and_cover_all_rows() -> None:
    def bands(rows: int, workers: int) -> list[Rows]:
        return Spread(workers, lambda *_: None).bands(rows)

    assert bands(3, 8) == [(0, 1), (1, 2), (2, 3)]
    assert bands(7, 2) == [(0, 4), (4, 7)]
    assert bands(100, 2) == [(n, min(n + 13, 100)) for n in range(0, 100, 13)]


def test_where_labels_of_several_images_go(tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    images = [tmp_path / name for name in ("a.png", "b.png")]
    for image in images:
        image.touch()

    def outputs(*images: Path, fresh: bool = False) -> dict[Path, Path]:
        return _outputs(Namespace(images=[*images], output=folder, fresh=fresh))

    with pytest.raises(UserError, match=r"Several images need a folder: .*labels is none"):
        outputs(*images)
    folder.mkdir()
    wanted = {image: folder / f"{image.stem}.tif" for image in images}
    assert outputs(*images) == wanted
    with pytest.raises(UserError, match=r"would both be labelled in .*b.tif: rename one"):
        outputs(*images, tmp_path / "b.jpg")
    (folder / "a.tif").touch()
    assert outputs(*images) == {images[1]: folder / "b.tif"}
    assert outputs(*images, fresh=True) == wanted
    with pytest.raises(UserError, match=r"a.tif is the image itself"):
        outputs(folder / "a.tif", images[1])
