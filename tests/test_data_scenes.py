"""Scenes: exact sampling where centres fall on borders, shrinking, maps that are missing, and the
class shares of the real data set."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from PIL import Image

from bench.errors import UserError
from data import earthcover, prepare
from data.packages import PackagedFile, require


def test_a_centre_on_a_border_takes_the_later_cell_everywhere() -> None:
    """At 15 px a degree on 20 cells a degree a pixel is 4/3 cells: centres at 2/3, 2, 10/3, 14/3,
    6."""
    first = earthcover.cells_under_centres(0, 36, 540, 360, 7200)
    assert first[:5].tolist() == [0, 2, 3, 4, 6]
    for start in range(0, 325):  # the same pattern wherever a box begins
        cells = earthcover.cells_under_centres(start, 36, 540, 360, 7200)
        assert np.array_equal(cells - 20 * start, first)


def test_at_the_labels_own_resolution_every_cell_is_one_pixel() -> None:
    cells = earthcover.cells_under_centres(58, 36, 720, 360, 7200)
    assert cells.tolist() == list(range(1160, 1880))


def test_a_finer_grid_repeats_cells_evenly() -> None:
    cells = earthcover.cells_under_centres(1, 54, 54 * 40, 360, 7200)
    assert cells.tolist() == [20 + i // 2 for i in range(54 * 40)]


def test_shrinking_averages_and_does_not_skip() -> None:
    """A checkerboard of single pixels has no detail left at a quarter of its resolution."""
    board = (np.indices((180, 360)).sum(0) % 2 * 200).astype(np.uint8)
    map = Image.fromarray(np.repeat(board[..., None], 3, -1))
    crop = earthcover.crop_image(map, west=-100, north=50, degrees=80, side=20)
    assert crop.shape == (20, 20, 3)
    assert np.abs(crop.astype(int) - 100).max() <= 3


def maps(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A world of 5 px a degree, its colour and its code known by formula."""
    longitude = np.arange(1800) // 5  # whole degrees east of -180
    image = np.broadcast_to((longitude * 255 // 359).astype(np.uint8), (900, 1800))
    codes = np.broadcast_to((longitude % 17).astype(np.uint8), (900, 1800))
    for kind, name, pixels in (
        ("IMAGE", "image.png", np.repeat(image[..., None], 3, -1)),
        ("LABEL", "label.png", codes),
    ):
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / name)
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        monkeypatch.setattr(earthcover, kind, PackagedFile("none", "1", name, digest))


@pytest.mark.parametrize(
    ("layout", "counts"), [("blocks36", (10, 3, 4)), ("continents54", (6, 2, 2))]
)
def test_all_scenes_of_a_known_world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, counts: tuple[int, ...]
) -> None:
    maps(tmp_path, monkeypatch)
    settings = earthcover.Settings(layout=layout, px_per_degree=1)
    pairs = list(earthcover.pairs(settings, tmp_path))
    degrees, splits = earthcover.LAYOUTS[layout]
    assert tuple(sum(p.split == s for p in pairs) for s in ("train", "val", "test")) == counts
    west = {name: west for boxes in splits.values() for name, west, _ in boxes}
    table = earthcover.class_map()
    for pair in pairs:
        east = (west[pair.id] + 180 + np.arange(degrees)) % 360  # whole degrees east of -180
        assert np.array_equal(pair.label, np.tile(table[east % 17], (degrees, 1)))
        wanted = np.tile(east * 255 // 359, (degrees, 1))[..., None]
        assert np.abs(pair.image.astype(int) - wanted).max() <= 2
    about = earthcover.about(settings)
    assert len(about.classes) == len(about.palette) == len(set(about.palette)) == 7
    assert set(about.rare) | set(about.ignored) <= set(about.classes)


def test_a_missing_or_wrong_map_names_the_stage_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps(tmp_path, monkeypatch)
    settings = earthcover.Settings(layout="blocks36", px_per_degree=1)
    path = tmp_path / "label.png"
    assert require(earthcover.LABEL, tmp_path) == path
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(
        UserError, match=r"label\.png has an unexpected SHA-256: run `dvc repro download`"
    ):
        next(earthcover.pairs(settings, tmp_path))
    path.unlink()
    with pytest.raises(UserError, match=r"label\.png is missing: run `dvc repro download`"):
        next(earthcover.pairs(settings, tmp_path))


# In %, as train, val, test; known from an earlier count, to the digits that are given.
SHARES = {
    "urban": (0.19, 0.38, 0.12),
    "agriculture": (5.6, 7.1, 4.8),
    "rangeland": (27, 28, 27),
    "forest": (15, 18, 12),
    "water": (41, 38, 43),
    "barren": (8.4, 7.4, 9.1),
    "snow_ice": (2.8, 0.5, 4.2),
    "unlabelled": (0.3, 1.2, 0.5),
}


@pytest.mark.slow
def test_class_shares_of_the_real_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the pipeline made it, else fetched; skipped where neither is possible."""
    settings = {"layout": "blocks36", "px_per_degree": 20}
    folder = ROOT / "data/prepared/earthcover"
    about = folder / "dataset.json"
    if not about.exists() or json.loads(about.read_text())["settings"] != settings:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PIP_RETRIES", "0")
        given = earthcover.Settings(layout="blocks36", px_per_degree=20)
        try:
            earthcover.download(given, tmp_path)
        except UserError as error:
            if "could not be downloaded" not in str(error):
                raise
            pytest.skip(str(error))
        pairs = earthcover.pairs(given, tmp_path)
        folder = prepare.prepare("earthcover", earthcover.about(given), pairs, settings).root
    shares = pd.read_csv(folder / "summary.csv").set_index(["split", "class"])["share"]
    for name, wanted in SHARES.items():
        for split, percent in zip(("train", "val", "test"), wanted, strict=True):
            tolerance = 0.5 if percent >= 10 else 0.1  # whole per cents above ten
            assert 100 * shares[split, name] == pytest.approx(percent, abs=tolerance)
