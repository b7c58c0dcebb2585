"""Scene pages: their pictures by hand, and in a real browser that opens them from disk."""

import io
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import barriers, opened
from conftest import SPLITS, model_line, write_dataset, write_suite
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser
from playwright.sync_api import Page as BrowserPage
from test_report import predict_scenes, suite_lines, write_evaluation

from bench.config import read_suite
from bench.report.figures import palette, scenes
from bench.report.figures.scenes import (
    NEITHER,
    RIGHT,
    WRONG,
    Page,
    encoded,
    errors,
    pyramid,
    tiles,
    write_image,
)
from bench.report.load_records import load_records
from bench.report.site import Site, write_assets
from bench.tiling import grid, shrink_image
from data.dataset import open_dataset

SCENE = SPLITS["test"][0]
COLOURS = ((200, 30, 30), (30, 200, 30), (30, 30, 200), (70, 70, 70))  # and what has no label


def write_pages(root: Path) -> list[Page]:
    """The tiny data set's scene pages: runs that see patches, a shrunk image, both, and the whole;
    and one that has no picture."""
    write_dataset(root)
    lines = suite_lines()
    lines["models"]["glnet"]["spec"] = {"global_px": 40, "patch_px": 32, "overlap_px": 8}
    lines["models"]["fctl"] = model_line("fctl", {"patch_px": 32, "overlap_px": 2}, ["medium"])
    lines["runs"]["fctl-medium"] = {"model": "fctl", "strategy": "medium"}
    lines["runs"]["fpn-downsample"] = {"model": "fpn", "strategy": "downsample"}
    write_suite(root, lines)
    for number, run in enumerate(("fpn-patch", "fpn-downsample", "fctl-medium", "unet-whole")):
        write_evaluation(run, predict_scenes(run, wrong=0.1 + 0.15 * number))
    write_evaluation("glnet-collaborative", predict_scenes("glnet-collaborative", wrong=0.7))
    inputs = load_records(read_suite())
    site = Site(root / "report", "tiny")
    write_assets(site.folder / "tiny")
    return scenes.write_pages(site, inputs, open_dataset("tiny"), SPLITS["test"])


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Page]]:
    """Written once; the current directory is theirs, for they read images."""
    root = tmp_path_factory.mktemp("viewer")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        yield write_pages(root)


def test_a_pyramid_by_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(scenes, "TILE_PX", 4)
    monkeypatch.setattr(scenes, "WHOLE_PX", 8)
    numbers = np.arange(70, dtype=np.uint8).reshape(7, 10)  # 10 x 7 -> 5 x 4 -> 3 x 2
    small, middle, large = pyramid(numbers)
    assert (small.shape, middle.shape, large.shape) == ((2, 3), (4, 5), (7, 10))
    assert middle.tolist()[1] == [20, 22, 24, 26, 28]
    assert small.tolist() == [[0, 4, 8], [40, 44, 48]]
    grey = np.full((7, 10, 3), 100, np.uint8)
    grey[0, 0] = 140  # the mean of four
    assert pyramid(grey)[1][0, 0].tolist() == [110] * 3
    cut = [(column, row, tile.shape) for column, row, tile in tiles(large)]
    assert cut[:3] == [(0, 0, (4, 4)), (1, 0, (4, 4)), (2, 0, (4, 2))]
    assert cut[-1] == (2, 1, (3, 2))

    colours = [(n, n, n, 255) for n in range(70)]
    layer = write_image(tmp_path, "a b/run", numbers, colours)
    place = {"path": "a%20b/run", "ending": "png", "width": 10, "height": 7}
    assert layer == {**place, "levels": 3, "tile_px": 4}
    found = {str(path.relative_to(tmp_path / "a b/run")) for path in tmp_path.rglob("*.png")}
    assert found == {"0/0_0.png"} | {f"1/{x}_0.png" for x in (0, 1)} | {
        f"2/{x}_{y}.png" for x in range(3) for y in range(2)
    }
    corner = np.asarray(Image.open(tmp_path / "a b/run/2/2_1.png"))
    assert corner.tolist() == large[4:, 8:].tolist()
    assert write_image(tmp_path, "small", numbers[:, :8], colours)["levels"] == 1


def test_colours_and_opacities_are_those_that_are_asked_for() -> None:
    flat = np.array([[0, 1], [2, 1]], np.uint8)
    picture = Image.open(io.BytesIO(encoded(flat, [(1, 2, 3, 0), (4, 5, 6, 255), (7, 8, 9, 90)])))
    assert np.asarray(picture.convert("RGBA")).tolist() == [
        [[1, 2, 3, 0], [4, 5, 6, 255]],
        [[7, 8, 9, 90], [4, 5, 6, 255]],
    ]
    assert np.array_equal(np.asarray(picture), flat)


def test_errors_by_hand() -> None:
    truth = np.array([[0, 1, 2, 255]], np.uint8)
    said = np.array([[0, 0, 0, 0]], np.uint8)
    assert errors(truth, said, []).tolist() == [[RIGHT, WRONG, WRONG, NEITHER]]
    assert errors(truth, said, [2]).tolist() == [[RIGHT, WRONG, NEITHER, NEITHER]]


def embedded(page: Page) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="scene">(.*?)</script>',
                      page.path.read_text(), re.DOTALL)  # fmt: skip
    assert found
    values: dict[str, Any] = json.loads(found.group(1))
    return values


def test_a_page_holds_what_the_networks_were_given(pages: list[Page]) -> None:
    assert [page.target for page in pages] == [f"tiny/scenes/{s}.html" for s in SPLITS["test"]]
    assert next(iter(pages[0].mious)) == "fpn-patch"  # the least wrong one is first
    assert pages[0].showing("label", "fpn-patch").endswith("#left=label&right=fpn-patch")
    values = embedded(pages[0])
    methods = {one["name"]: one for one in values["methods"]}
    assert "unet-patch" not in methods  # it has no picture
    shrunk, patches = methods["glnet-collaborative"]["inputs"]
    assert patches["boxes"] == [list(box) for box in grid(70, 90, 32, 8)]
    assert patches["what"] == "12 patches of 32 × 32 px"
    assert (
        shrunk["what"]
        == "the whole image of 90 × 70 px shrunk to 40 × 40 px (one pixel for 2.2 × 1.8)"
    )
    assert methods["unet-whole"]["inputs"][0]["given"] is None
    contexts = methods["fctl-medium"]["inputs"][1]
    assert (
        contexts["what"]
        == "the medium contexts of 64 × 64 px shrunk to 32 × 32 px (one pixel for 2.0 × 2.0)"
    )
    assert contexts["boxes"][0] == [-16, -16, 64, 64]
    given = pages[0].path.parent / shrunk["given"]
    image = open_dataset("tiny").read(SCENE)[0]
    exact = shrink_image(image, (40, 40)).permute(1, 2, 0)
    assert torch.equal(torch.from_numpy(np.array(Image.open(given))), exact)


def test_the_same_records_give_the_same_bytes(pages: list[Page]) -> None:
    folder = pages[0].path.parent
    before = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    stale = folder / SCENE / "run-of-yesterday.png"
    stale.touch()
    inputs = load_records(read_suite())
    scenes.write_pages(
        Site(folder.parents[1], "tiny"), inputs, open_dataset("tiny"), SPLITS["test"]
    )
    after = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    assert before == after


@dataclass(frozen=True)
class Seen:
    """A picture of the stage, and where the image lies on it."""

    pixels: NDArray[np.uint8]
    x: float
    y: float
    scale: float
    """Screen pixels a pixel of the image."""
    handle: float

    def place(self, row: int, column: int) -> tuple[int, int]:
        """(y, x) of the middle of a pixel of the image."""
        return round(self.y + (row + 0.5) * self.scale), round(self.x + (column + 0.5) * self.scale)

    def colour(self, row: int, column: int) -> tuple[int, ...]:
        return tuple(self.pixels[self.place(row, column)].tolist())

    def side(self, column: int) -> str:
        """Which side a column is on; neither near the handle."""
        x = self.place(0, column)[1]
        return "left" if x < self.handle - 30 else "right" if x > self.handle + 30 else ""


def look(page: BrowserPage) -> Seen:
    """What is seen of the stage, once all that is wanted is drawn."""
    page.wait_for_function(
        """() => items.every(({tiled}) => tiled && (!tiled.getOpacity() || tiled.getFullyLoaded()))
        && viewport.getZoom(true) === viewport.getZoom(false)"""
    )
    page.wait_for_timeout(120)  # two frames
    picture = Image.open(io.BytesIO(page.locator("#stage").screenshot())).convert("RGB")
    x, y, end, handle = page.evaluate(
        """() => { const at = (x) => viewport.pixelFromPoint(new OpenSeadragon.Point(x, 0), true);
        return [at(0).x, at(0).y, at(1).x, swipe.valueAsNumber * stage.clientWidth]; }"""
    )
    return Seen(np.array(picture), x, y, (end - x) / 90, handle)


ROWS, COLUMNS = range(2, 70, 9), range(3, 90, 6)


def sides_as_expected(seen: Seen, left: NDArray[np.uint8], right: NDArray[np.uint8]) -> set[str]:
    """Which sides are seen; every pixel that is looked at must have the colour of its side."""
    found = set()
    for row, column in itertools.product(ROWS, COLUMNS):
        labels = {"left": left, "right": right}.get(seen.side(column))
        if labels is not None:
            found.add(seen.side(column))
            expected = COLOURS[min(int(labels[row, column]), 3)]
            assert seen.colour(row, column) == expected, (row, column)
    return found


Opened = tuple[BrowserPage, NDArray[np.uint8], NDArray[np.uint8]]


@pytest.fixture
def open_page(chromium: Browser, pages: list[Page]) -> Iterator[Opened]:
    """The label beside a run, labels opaque; with the label and what the run says."""
    truth = open_dataset("tiny").read(SCENE)[1].numpy()
    said = np.array(Image.open(f"results/tiny/predictions/fpn-patch/{SCENE}.png"))
    with opened(chromium, pages[0].path, "left=label&right=fpn-patch") as page:
        page.locator("[name=opacity]").fill("100")
        yield page, truth, said


def test_the_handle_moves_what_is_seen(open_page: Opened) -> None:
    page, truth, said = open_page
    first = look(page)
    assert sides_as_expected(first, truth, said) == {"left", "right"}
    box = page.locator("#swipe").bounding_box()
    assert box
    y, middle = box["y"] + box["height"] / 2, box["x"] + box["width"] / 2
    page.mouse.move(middle, y)
    page.mouse.down()
    page.mouse.move(middle - 200, y, steps=3)
    page.mouse.up()
    moved = look(page)
    assert first.handle - moved.handle == pytest.approx(200, abs=3)
    assert sides_as_expected(moved, truth, said) == {"left", "right"}
    shares = (first.pixels != moved.pixels).any(2).mean(0)  # of each column
    outside = np.r_[shares[: int(moved.handle) - 30], shares[int(first.handle) + 30 :]]
    assert outside.max() < 0.02  # only what lies between the two places has changed
    assert shares[int(moved.handle) + 30 : int(first.handle) - 30].mean() > 0.02
    page.locator("#swipe").press("ArrowRight")
    assert look(page).handle > moved.handle


def square(seen: Seen, row: int, column: int, edge_px: int = 2) -> NDArray[np.uint8]:
    """The colours of a pixel of the image, but for its edge."""
    y, x = seen.place(row, column)
    half = int(seen.scale / 2) - edge_px
    inside = seen.pixels[y - half : y + half, x - half : x + half].reshape(-1, 3)
    return np.unique(inside, axis=0)


def test_a_pixel_is_a_square_and_the_keyboard_zooms(open_page: Opened) -> None:
    page, _, said = open_page
    before = look(page).scale
    page.locator(".openseadragon-canvas").focus()
    page.keyboard.press("+")
    assert look(page).scale > before
    page.evaluate("viewport.zoomTo(6, new OpenSeadragon.Point(.55, .4), true)")
    near = look(page)
    assert near.scale > 40
    assert square(near, 36, 52).tolist() == [list(COLOURS[said[36, 52]])]

    # A layer that lets the image through goes by a canvas of its own, made while pixels were small.
    page.evaluate("viewport.minZoomLevel = .01; viewport.zoomTo(.05, null, true)")
    page.locator("[name=opacity]").fill("50")
    assert look(page).scale < 1
    page.evaluate("viewport.zoomTo(6, new OpenSeadragon.Point(.55, .4), true)")
    page.evaluate("viewport.panTo(new OpenSeadragon.Point(.55, .4), true)")
    near = look(page)
    assert near.scale > 40
    assert len(square(near, 36, 52, edge_px=4)) == 1  # Chromium 150 places a canvas 3 px off


def test_menus_errors_and_what_was_given(open_page: Opened) -> None:
    page, truth, said = open_page
    assert "mIoU" in page.locator("#right-miou").inner_text()
    page.locator("#left").select_option("glnet-collaborative")
    page.locator("[name=show][value=errors]").check()
    assert "left=glnet-collaborative" in page.url
    wrong = look(page)
    vermillion = tuple(int(palette.ERROR[i : i + 2], 16) for i in (1, 3, 5))
    told = set()
    for row, column in itertools.product(ROWS, COLUMNS):
        if wrong.side(column) == "right" and truth[row, column] != 255:
            is_wrong = truth[row, column] != said[row, column]
            told.add(is_wrong)
            assert (wrong.colour(row, column) == vermillion) == is_wrong, (row, column)
    assert told == {True, False}

    page.locator("[name=patches]").check()
    page.locator("[name=shrunk]").check()
    assert (look(page).pixels != wrong.pixels).any()
    rects = page.eval_on_selector_all(
        ".over.right rect",
        "all => all.map(r => ['y', 'x', 'height', 'width'].map(n => +r.getAttribute(n)))",
    )
    assert rects == [list(box) for box in grid(70, 90, 32, 8)]
    assert "12 patches of 32 × 32 px" in page.locator("#right-given").inner_text()
    y, x = wrong.place(1, 88)
    stage = page.locator("#stage").bounding_box()
    assert stage
    page.mouse.move(stage["x"] + x, stage["y"] + y)
    assert page.locator(".over.right rect.seen").count() == 1
    assert page.locator(".under.left image").count() == 1
    assert page.locator(".under.right image").count() == 0
    page.locator("#right").select_option("fctl-medium")
    page.mouse.move(stage["x"] + x, stage["y"] + y + 1)
    seen = page.eval_on_selector_all(".over.right .seen", "all => all.map(r => r.dataset.patch)")
    assert seen == ["1-2", "1-2"]  # the last of three patches in the first row, and its context
    assert barriers(page) == []


def test_tiles_join(
    chromium: Browser, pages: list[Page], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(scenes, "WHOLE_PX", 40)
    monkeypatch.setattr(scenes, "TILE_PX", 32)
    site = Site(tmp_path, "tiny")
    write_assets(site.folder / "tiny")
    dataset = open_dataset("tiny")
    page = scenes.write_pages(site, load_records(read_suite()), dataset, [SCENE])[0]
    assert embedded(page)["label"]["levels"] == 3
    truth = dataset.read(SCENE)[1].numpy()
    with opened(chromium, page.path, "left=label&right=image") as shown:
        shown.locator("[name=opacity]").fill("100")
        shown.locator("#swipe").fill("1")
        assert sides_as_expected(look(shown), truth, truth) == {"left"}
