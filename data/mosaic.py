"""Mosaic: a synthetic data set of any size whose labels need both the whole image and the patch.

Four classes: ground and line, each in regions a and b. Coloured discs, the beacons, are far apart;
a pixel belongs to the region of the nearest beacon, so that a patch without a beacon does not show
whether it is in a or b. Lines three px wide cross both regions, and the shrunken image does not
show them at all. `upper_bounds` computes the best mIoU with one view alone; docs/mosaic.md explains
it.

Three properties make these bounds exact:

Every image has a *twin*, which differs in the beacons' colours: they are swapped, and so are all
labels. Without a beacon both look the same, and a label is correct for at most one of them.

A line is +d, -2d, +d across, inside a block of 4 px. Antialiased bilinear shrinking by s = 8, 16 or
32 weights pixels by a triangle whose kinks are at s/2, 3s/2, .., never inside a block; where the
weights are linear, +1, -2, +1 sums to 0. A line ends at kinks, where the triangle of an output cell
covers none, half or all of it: integer grey levels, so that the 8-bit rounding between the two
passes cancels as well. No line is near the edge of the image, where the triangle is cut.

Everything is drawn in integers from a seed; lines have a random stream of their own, independent of
all that the shrunken image shows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pydantic
from numpy.typing import NDArray
from pydantic import ConfigDict, Field

from bench.errors import UserError
from bench.files import write_text
from bench.tiling import Box, grid
from data.dataset import UNLABELLED, About, Pair

CLASSES: tuple[tuple[str, tuple[int, int, int]], ...] = (
    ("ground_a", (222, 170, 160)),
    ("ground_b", (160, 176, 222)),
    ("line_a", (170, 20, 20)),
    ("line_b", (20, 40, 170)),
)
SPLITS = ("train", "val", "test")
BEACONS = ((208, 96, 96), (96, 96, 208))  # RGB of a and b
BEACON_RADIUS_PX = 12
GROUND = 128
NOISE = 8  # each channel of each pixel is off by up to so many grey levels
LINE = (16, -32, 16)  # added to all channels across a line: sum and first moment are nothing
BLOCK_PX = 4  # lines lie inside blocks, which are also the cells of labels at 1/4
GAP_BLOCKS = (6, 14)  # from one line to the next parallel one, both included
LENGTH_PX = (96, 480)
PAUSE_PX = (16, 64)

CREDIT = (
    "Drawn by a formula from a seed (data/mosaic.py). A proof of mechanism: that it needs a global "
    "and a local view says nothing of real imagery."
)

Mask = NDArray[np.bool_]


@pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Settings:
    """Size and number of images, and the geometry that the upper bounds assume."""

    size_px: Annotated[int, Field(ge=96)]
    """Side of every image; 8, 16 or 32 times `global_px`."""
    seed: Annotated[int, Field(ge=0)]
    train_twins: Annotated[int, Field(ge=1)]
    """Pairs of an image and its twin, by split: twice as many images."""
    val_twins: Annotated[int, Field(ge=1)]
    test_twins: Annotated[int, Field(ge=1)]
    beacon_spacing_px: Annotated[int, Field(ge=4 * BEACON_RADIUS_PX)]
    """About so far apart are neighbouring beacons."""
    global_px: Annotated[int, Field(ge=8)]
    """Side of a global branch's input."""
    patch_px: Annotated[int, Field(ge=4)]
    """Side of a local branch's patches."""
    overlap_px: Annotated[int, Field(ge=0)]
    """Least overlap of neighbouring patches."""


@dataclass(frozen=True)
class Scene:
    """One image and its twin, before colours; all arrays are (H, W)."""

    region_b: Mask
    """Whether the nearest beacon is of colour b; in the twin, of colour a."""
    line: Mask
    beacon: Mask
    """Pixels of beacons: unlabelled, and the only ones in which twins differ."""
    relief: NDArray[np.int16]
    """The lines' contribution to the grey levels."""
    noise: NDArray[np.int16]
    """(H, W, 3)."""


def about(settings: Settings) -> About:
    """The description of the data set, with the upper bounds of the test split."""
    check(settings)
    scenes = [draw(settings, "test", number) for number in range(settings.test_twins)]
    return About.of(
        CLASSES,
        CREDIT,
        splits={
            split: tuple(id for number in numbers for id in _ids(split, number))
            for split, numbers in _scenes(settings).items()
        },
        ceilings=upper_bounds(scenes, settings),
    )


def download(settings: Settings, raw: Path) -> None:
    """Nothing to fetch: writes a file that says so, since the pipeline expects one."""
    check(settings)
    write_text(raw / "README", "Mosaic is drawn by data/mosaic.py; nothing is fetched.\n")


def pairs(settings: Settings, raw: Path) -> Iterator[Pair]:
    """Every scene and, after it, its twin."""
    check(settings)
    for split, numbers in _scenes(settings).items():
        for number in numbers:
            scene = draw(settings, split, number)
            for id, twin in zip(_ids(split, number), (False, True), strict=True):
                yield Pair(split, id, image_of(scene, twin), label_of(scene, twin))


def check(settings: Settings) -> None:
    """Refuse settings with which the shrunken image would show lines, or labels at 1/4 miss them."""
    size, side = settings.size_px, settings.global_px
    if size not in (8 * side, 16 * side, 32 * side):
        raise UserError(
            f"Mosaic: size_px is {size}, but must be 8, 16 or 32 times global_px ({side}), so that "
            "the shrunken image does not show the lines."
        )
    if size < 2 * settings.beacon_spacing_px:
        raise UserError(
            f"Mosaic: beacon_spacing_px is {settings.beacon_spacing_px}, but must be at most half "
            f"of size_px ({size}), so that an image has both colours."
        )
    if settings.overlap_px >= settings.patch_px:
        raise UserError(
            f"Mosaic: overlap_px is {settings.overlap_px}, but must be less than patch_px "
            f"({settings.patch_px})."
        )
    wrong = [box.left for box in _boxes(settings) if box.left % BLOCK_PX]
    if wrong:
        raise UserError(
            f"Mosaic: a patch begins at {wrong[0]} px, but all must at multiples of {BLOCK_PX}, "
            "where the cells of labels at 1/4 begin: change patch_px or overlap_px."
        )


def draw(settings: Settings, split: str, number: int) -> Scene:
    """The scene `number` of a split: the same on every machine, and for every number of scenes."""
    size = settings.size_px

    def stream(purpose: int) -> np.random.Generator:
        key = [settings.seed, SPLITS.index(split), number, purpose]
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))

    region_b, beacon = _regions(size, settings.beacon_spacing_px, stream(0))
    relief, line = _lines(size, size // settings.global_px, stream(1))
    noise = stream(2).integers(-NOISE, NOISE + 1, (size, size, 3), np.int16)
    return Scene(region_b, line, beacon, relief, noise)


def image_of(scene: Scene, twin: bool = False, lines: bool = True) -> NDArray[np.uint8]:
    """(H, W, 3) RGB; `lines`: False leaves them out, to show that the shrunken image does too."""
    colours = np.array(BEACONS[::-1] if twin else BEACONS, np.int16)
    image = np.where(
        scene.beacon[..., None], colours[scene.region_b.astype(np.int8)], np.int16(GROUND)
    )
    image += scene.noise
    if lines:
        image += scene.relief[..., None]  # on beacons too, since a gap in a line would be visible
    return image.astype(np.uint8)


def label_of(scene: Scene, twin: bool = False) -> NDArray[np.uint8]:
    """(H, W): class index, 255 on beacons."""
    return np.where(scene.beacon, UNLABELLED, classes_of(scene, twin)).astype(np.uint8)


def classes_of(scene: Scene, twin: bool = False) -> NDArray[np.uint8]:
    """(H, W): class index of every pixel, also under beacons."""
    return (2 * scene.line + (scene.region_b ^ twin)).astype(np.uint8)


def upper_bounds(scenes: Sequence[Scene], settings: Settings) -> Mapping[str, float]:
    """The best mIoU, 0..1, over these scenes and their twins for

    one patch: labels that depend on one patch of the grid alone (and on its position). Everything
        is assumed known except a or b where no patch over a pixel shows part of a beacon. There one
        of two twins is correct; IoU is concave in the share of labels a, so that half is best.
    shrunken image: labels that depend on the shrunken image alone. Everything is assumed known
        except the lines. They are drawn from their own random stream, so that only a pixel's
        position in its block carries information; the best guess from it is assumed (in the mean
        over all possible lines).
    labels at 1/4: a bound of the output, not of a view: every label is correct at the centre of its
        cell of 4 x 4 px.

    By the twins, classes a and b are equal in all counts, so that only ground and line are counted.
    """
    boxes = _boxes(settings)
    return {
        "one patch": _one_patch(scenes, boxes),
        "shrunken image": _shrunken_image(scenes, settings),
        "labels at 1/4": _labels_at_a_quarter(scenes),
    }


def shows_beacon(scene: Scene, boxes: Sequence[Box]) -> Mask:
    """(H, W): pixels covered by a patch that shows part of a beacon."""
    shown = np.zeros_like(scene.beacon)
    for box in boxes:
        place = np.s_[box.top : box.top + box.height, box.left : box.left + box.width]
        if scene.beacon[place].any():
            shown[place] = True
    return shown


def _one_patch(scenes: Sequence[Scene], boxes: Sequence[Box]) -> float:
    labelled, known = np.zeros(2), np.zeros(2)  # pixels of ground and of line
    for scene in scenes:
        shown = shows_beacon(scene, boxes)
        labelled += np.bincount(scene.line[~scene.beacon], minlength=2)
        known += np.bincount(scene.line[~scene.beacon & shown], minlength=2)
    right = (labelled + known) / 2
    return _mean_iou(right, labelled, labelled)


def _shrunken_image(scenes: Sequence[Scene], settings: Settings) -> float:
    margin = margin_px(settings.size_px // settings.global_px)
    place = np.arange(settings.size_px)
    inside = np.minimum(place, place[::-1]) >= margin
    middle = np.isin(place % BLOCK_PX, (1, 2))  # in every line of a block, the outer ones in half
    group = np.where(inside[:, None] & inside, middle[:, None] + 1 * middle, 3)
    pixels, lines = np.zeros(4), np.zeros(4)
    for scene in scenes:
        pixels += np.bincount(group[~scene.beacon], minlength=4)
        lines += np.bincount(group[~scene.beacon & scene.line], minlength=4)
    return best_guess(pixels, lines)


def best_guess(pixels: NDArray[np.float64], lines: NDArray[np.float64]) -> float:
    """The best mean IoU of line and ground, if of a pixel no more is known than its group.

    Args:
        pixels, lines: (G,) all pixels of each group and those of lines.
    """
    order = np.argsort(-lines / pixels)  # the likeliest first, whatever the number of guesses
    taken = np.append(0, np.cumsum(pixels[order]))
    hits = np.append(0, np.cumsum(lines[order]))
    guesses = np.linspace(0, taken[-1], 100_001)
    right = np.interp(guesses, taken, hits)
    missed = hits[-1] - right
    line = right / (guesses + missed)
    ground = (taken[-1] - guesses - missed) / (taken[-1] - right)
    return float((line + ground).max() / 2)


def _labels_at_a_quarter(scenes: Sequence[Scene]) -> float:
    right, truth, guessed = np.zeros(2), np.zeros(2), np.zeros(2)
    centres = np.s_[BLOCK_PX // 2 :: BLOCK_PX, BLOCK_PX // 2 :: BLOCK_PX]
    block = np.ones((BLOCK_PX, BLOCK_PX), np.uint8)
    for scene in scenes:
        found = classes_of(scene)[~scene.beacon]
        cells = np.kron(classes_of(scene)[centres], block)[~scene.beacon]
        truth += np.bincount(found // 2, minlength=2)
        guessed += np.bincount(cells // 2, minlength=2)
        right += np.bincount(found[cells == found] // 2, minlength=2)
    return _mean_iou(right, truth, guessed)


def _mean_iou(
    right: NDArray[np.float64], truth: NDArray[np.float64], guessed: NDArray[np.float64]
) -> float:
    return float((right / (truth + guessed - right)).mean())


def _regions(size: int, spacing: int, rng: np.random.Generator) -> tuple[Mask, Mask]:
    """Which pixels have a beacon of colour b nearest, and which are beacon."""
    count = size // spacing
    cell = size // count
    colours = rng.permutation(np.arange(count**2) % 2)
    shift = rng.integers(-(cell // 4), cell // 4 + 1, (count**2, 2))
    rows, columns = np.ogrid[:size, :size]
    nearest = np.full((size, size), np.iinfo(np.int64).max)
    region_b = np.zeros((size, size), np.bool_)
    for number, (down, right) in enumerate(shift):
        row = number // count * size // count + cell // 2 + down
        column = number % count * size // count + cell // 2 + right
        distance = (rows - row) ** 2 + (columns - column) ** 2
        region_b[distance < nearest] = colours[number]
        nearest = np.minimum(nearest, distance)
    return region_b, nearest <= BEACON_RADIUS_PX**2


def _lines(size: int, scale: int, rng: np.random.Generator) -> tuple[NDArray[np.int16], Mask]:
    """Relief and mask of lines along both axes that shrinking by `scale` cancels."""
    relief, mask = np.zeros((size, size), np.int16), np.zeros((size, size), np.bool_)
    margin = margin_px(scale)
    inside = size - 2 * margin

    def length(low_px: int, high_px: int) -> int:
        return max(int(rng.integers(low_px, high_px + 1)) // scale, 1)

    def line_and_gap() -> list[bool]:
        low, high = GAP_BLOCKS
        return [True] + [False] * (int(rng.integers(low, high + 1)) - 1)

    def length_and_pause() -> list[bool]:
        return [True] * length(*LENGTH_PX) + [False] * length(*PAUSE_PX)

    # Transposed views: what is drawn along the rows of one runs down the columns of the other.
    for seen, marked in ((relief, mask), (relief.T, mask.T)):
        for block in np.flatnonzero(_ring(inside // BLOCK_PX, line_and_gap, rng)):
            first = margin + BLOCK_PX * int(block) + int(rng.integers(2))
            drawn = np.zeros(size, np.bool_)
            cells = _ring(inside // scale, length_and_pause, rng)
            drawn[margin : size - margin] = cells.repeat(scale)
            seen[first : first + 3, drawn] += np.array(LINE, np.int16)[:, None]
            marked[first : first + 3, drawn] = True
    return relief, mask


def margin_px(scale: int) -> int:
    """Distance from the edge within which shrinking by `scale` cuts its triangles; no line is there."""
    return scale + scale // 2


def _ring(count: int, piece: Callable[[], list[bool]], rng: np.random.Generator) -> Mask:
    """(count,): pieces in a ring that is rotated at random, so that all positions are equally
    likely."""
    ring: list[bool] = []
    while len(ring) < count:
        ring += piece()
    return np.roll(np.array(ring), int(rng.integers(len(ring))))[:count]


def _boxes(settings: Settings) -> list[Box]:
    return grid(settings.size_px, settings.size_px, settings.patch_px, settings.overlap_px)


def _scenes(settings: Settings) -> dict[str, range]:
    """Numbers of the scenes, by split."""
    return {split: range(getattr(settings, f"{split}_twins")) for split in SPLITS}


def _ids(split: str, number: int) -> tuple[str, str]:
    """Of a scene and of its twin."""
    return f"{split}{number:03}", f"{split}{number:03}-twin"
