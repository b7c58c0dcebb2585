"""Patch geometry against numbers worked out by hand and against the official code's
(tests/golden/geometry.json)."""

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from bench.tiling import (
    Blend,
    Box,
    Merger,
    bounding_box,
    crop,
    cut,
    grid,
    groups,
    importance,
    labels_of,
    relaxed,
    scaled,
    scores_by_patches,
    shrink_image,
    shrink_label,
    starts,
    weighted,
    weights_of,
)

GEOMETRY = json.loads((Path(__file__).parent / "golden/geometry.json").read_text())


def test_starts_by_hand() -> None:
    assert starts(100, 40, 10) == [0, 30, 60]
    assert starts(101, 40, 10) == [0, 20, 41, 61]  # 30.5 px a step would overlap by 9.5
    assert starts(40, 40, 10) == [0]
    assert starts(7, 40, 10) == [0]


def test_an_overlap_as_large_as_the_patch_is_refused() -> None:
    with pytest.raises(ValueError, match="0 <= overlap < patch"):
        starts(100, 40, 40)


@pytest.mark.parametrize("case", GEOMETRY, ids=lambda c: f"{c['h']}x{c['w']}/{c['size_p']}")
def test_grid_and_crops_are_the_official_ones(case: dict) -> None:
    boxes = grid(case["h"], case["w"], case["size_p"], 50)
    assert [[box.top, box.left] for box in boxes] == case["top_left_px"]
    image = (case["h"], case["w"])
    for rows, cols in zip(case["rows"], case["cols"], strict=True):
        places = [scaled(box, image, (rows["side"], cols["side"])) for box in boxes]
        tops = [place.top for place in places[:: case["n_cols"]]]
        lefts = [place.left for place in places[: case["n_cols"]]]
        # Where the official crop leaves the map (256/128), ours is moved back to its edge.
        assert tops == [min(top, rows["side"] - rows["crop"]) for top in rows["tops"]]
        assert lefts == [min(left, cols["side"] - cols["crop"]) for left in cols["tops"]]
        assert {(place.height, place.width) for place in places} == {(rows["crop"], cols["crop"])}


def test_a_box_never_leaves_the_map_nor_vanishes() -> None:
    for cells in range(1, 12):
        for box in grid(700, 333, 100, 20):
            place = scaled(box, (700, 333), (cells, cells))
            assert place.height >= 1
            assert place.width >= 1
            assert 0 <= place.top <= cells - place.height
            assert 0 <= place.left <= cells - place.width


@pytest.mark.parametrize("size", [(70, 90), (31, 90), (20, 17), (1, 1)])
def test_stitching_gives_back_what_was_cut(size: tuple[int, int]) -> None:
    image = torch.randint(0, 255, (3, *size), dtype=torch.uint8)
    boxes = grid(*size, 32, 8)

    def brightest(group: list[Box]) -> torch.Tensor:
        return torch.stack([box.of(image).float() for box in group])

    labels = labels_of(scores_by_patches(image, boxes, 2, brightest))
    assert labels.dtype == torch.uint8
    assert torch.equal(labels, image.float().argmax(0).to(torch.uint8))


def gaussian(side: int, place: int) -> float:
    """Around the middle of a side, with a standard deviation of an eighth of it."""
    return math.exp(-(((place - (side - 1) / 2) / (side / 8)) ** 2) / 2)


def test_importance_is_a_gaussian_around_the_centre() -> None:
    found = importance(6, 9)
    for row, column in itertools.product(range(6), range(9)):
        by_hand = gaussian(6, row) * gaussian(9, column)
        assert float(found[row, column]) == pytest.approx(by_hand, rel=1e-5)
    assert float(importance(1, 9)[0, 4]) == 1


@pytest.mark.parametrize("side", [1, 2, 32, 508, 4096])
def test_no_pixel_of_a_patch_weighs_nothing(side: int) -> None:
    weights = importance(side, side)
    assert torch.finfo(torch.float32).tiny < float(weights.min()) <= float(weights.max()) <= 1
    assert float(weights[0, 0]) == pytest.approx(math.exp(-16 * (1 - 1 / side) ** 2), rel=1e-4)


def test_weighted_scores_are_the_weighted_mean_of_the_patches() -> None:
    """Against a loop over pixels and the patches above each, in float64."""
    height, width, side = 20, 27, 8
    boxes = grid(height, width, side, 3)
    scores = torch.randn(len(boxes), 2, side, side, generator=torch.Generator().manual_seed(0))
    all_of = dict(zip(boxes, scores, strict=True))

    def score(group: Sequence[Box]) -> torch.Tensor:
        return torch.stack([all_of[box] for box in group])

    image = torch.zeros(3, height, width, dtype=torch.uint8)
    summed = scores_by_patches(image, boxes, 4, score, blend="gaussian")
    found = summed / weights_of(boxes, (height, width), "gaussian")
    for k, row, column in itertools.product(range(2), range(height), range(width)):
        total = weight = 0.0
        for box in boxes:
            if box.shows(row, column):
                y, x = row - box.top, column - box.left
                one = gaussian(side, y) * gaussian(side, x)
                total, weight = total + one * float(all_of[box][k, y, x]), weight + one
        assert float(found[k, row, column]) == pytest.approx(total / weight, rel=1e-4, abs=1e-6)


def test_without_overlap_weights_change_no_label() -> None:
    image = torch.randint(0, 255, (3, 64, 96), dtype=torch.uint8)
    boxes = grid(64, 96, 32, 0)

    def summed(blend: Blend) -> torch.Tensor:
        return scores_by_patches(image, boxes, 2, lambda g: cut(image, g).float(), blend=blend)

    assert torch.equal(weights_of(boxes, (64, 96), "mean"), torch.ones(64, 96))
    assert torch.equal(labels_of(summed("gaussian")), labels_of(summed("mean")))
    mean = summed("gaussian") / weights_of(boxes, (64, 96), "gaussian")
    torch.testing.assert_close(mean, summed("mean"))


def test_the_plain_mean_is_not_touched() -> None:
    scores = torch.randn(2, 3, 8, 8)
    assert weighted(scores, "mean") is scores


def test_scores_add_up_where_patches_overlap() -> None:
    scores = iter([[3.0, 0.0], [0.0, 2.0]])  # first patch: class 0 by 3; second: class 1 by 2

    def score(group: list[Box]) -> torch.Tensor:
        return torch.tensor(next(scores)).view(1, 2, 1, 1).expand(1, 2, 1, 4)

    image = torch.zeros(3, 1, 6, dtype=torch.uint8)
    summed = scores_by_patches(image, [Box(0, 0, 1, 4), Box(0, 2, 1, 4)], 1, score)
    assert summed[:, 0].tolist() == [[3, 3, 3, 3, 0, 0], [0, 0, 2, 2, 2, 2]]
    assert labels_of(summed).tolist() == [[0, 0, 0, 0, 1, 1]]


def test_groups_hold_all_items_once() -> None:
    assert [list(group) for group in groups(range(5), 2)] == [[0, 1], [2, 3], [4]]


def test_crop_takes_the_map_under_the_box() -> None:
    map = torch.arange(16.0).view(1, 1, 4, 4)
    cropped = crop(map, [Box(0, 0, 8, 8), Box(8, 8, 8, 8)], (16, 16))
    assert cropped[:, 0].tolist() == [[[0, 1], [4, 5]], [[10, 11], [14, 15]]]


def test_merging_crops_gives_the_map_back() -> None:
    map = torch.rand(1, 5, 23, 31)
    boxes, image = grid(230, 310, 64, 16), (230, 310)
    merger = Merger([map], image)
    for group in groups(boxes, 4):
        merger.add([[crop(map, group, image)]], group)
    torch.testing.assert_close(merger.mean()[0][0], map)


def test_labels_shrink_like_pillow_nearest() -> None:
    label = torch.arange(40, dtype=torch.uint8).view(1, 40).expand(8, 40)
    assert shrink_label(label, (2, 10))[0].tolist() == list(range(2, 40, 4))  # index 4 i + 2


def test_images_shrink_like_pillow_bilinear() -> None:
    from PIL import Image

    image = torch.randint(0, 255, (3, 97, 61), dtype=torch.uint8)
    ours = shrink_image(image, (20, 24)).permute(1, 2, 0).int()
    picture = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((24, 20), Image.BILINEAR)
    theirs = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(20, 24, 3)
    assert (ours - theirs.int()).abs().max() <= 1  # one grey level of rounding


def test_the_box_around_a_mask() -> None:
    mask = torch.zeros(9, 7, dtype=torch.bool)
    assert bounding_box(mask) is None
    mask[2, 4] = mask[5, 1] = True
    assert bounding_box(mask) == Box(2, 1, 4, 4)


@pytest.mark.parametrize(
    ("box", "margin", "least", "expected"),
    [
        (Box(10, 20, 10, 20), 0.1, (0, 0), Box(9, 18, 12, 24)),  # one and two pixels at each end
        (Box(0, 90, 10, 10), 0.5, (0, 0), Box(0, 80, 20, 20)),  # moved back inside
        (Box(40, 40, 4, 6), 0.0, (16, 12), Box(34, 37, 16, 12)),  # grown around its centre
        (Box(2, 2, 60, 70), 1.0, (0, 0), Box(0, 0, 100, 100)),  # the whole image at most
    ],
)
def test_a_box_with_a_margin(
    box: Box, margin: float, least: tuple[int, int], expected: Box
) -> None:
    assert relaxed(box, (100, 100), margin, least) == expected
