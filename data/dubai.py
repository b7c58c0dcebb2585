"""Dubai: 8 satellite mosaics, 99 megapixels in all, with five classes.

The public copy cuts each mosaic into 3 x 3 parts, which are joined again. Some mosaics overlap on the
ground; train and val are unlabelled where a test mosaic shows the same ground."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pydantic
from numpy.typing import NDArray
from pydantic import ConfigDict, Field

from bench.errors import UserError
from data.dataset import UNLABELLED, About, Pair
from data.fetch import DEFAULTS, DownloadOptions
from data.image_file import read_image
from data.repository import RAW_URL, Repository

CLASSES = (
    ("building", (0x3C, 0x10, 0x98)),
    ("land", (0x84, 0x29, 0xF6)),
    ("road", (0x6E, 0xC1, 0xE4)),
    ("vegetation", (0xFE, 0xDD, 0x3A)),
    ("water", (0xE2, 0xA9, 0x29)),
)
"""Pixels of other colours are unlabelled."""
FILES = Repository(
    "Kaarti22/satellite-imagery",
    "4943c52893442a9547e0f36fc69c354bd3244e95",
    "Semantic segmentation dataset",
    Path(__file__).parent / "manifests/dubai.sha256",
)
FOLDS = {
    "A": {"train": (4, 6, 7), "val": (1, 3), "test": (2, 5, 8)},
    "B": {"train": (5, 8), "val": (2,), "test": (1, 3, 4, 6, 7)},
}
"""Mosaics by split; every mosaic is in the test split of one fold."""
CUTS = {7: (3, 2), 8: (2, 3)}
"""Rows and columns of scenes that the two largest mosaics are cut into."""
OVERLAPS = {
    (1, 3): (slice(0, 376), slice(0, 556)),
    (3, 1): (slice(1598, 1974), slice(1490, 2046)),
    (4, 8): (slice(0, 2070), slice(1610, 3297)),
    (8, 4): (slice(2370, 4438), slice(0, 1710)),
    (7, 8): (slice(0, 710), slice(0, 3036)),
    (8, 7): (slice(3728, 4438), slice(3411, 6447)),
}
"""(mosaic, other): rows and columns of the mosaic that the other also shows, with 16 px of margin."""
CREDIT = (
    "Imagery: Mohammed Bin Rashid Space Centre. Labels: Humans in the Loop, CC0 by their statement; "
    "the repository has no licence file. Fold {fold}. The labels are noisy: the two annotations of "
    "ground that two mosaics show agree to a mIoU of 0.62 and 0.52, and differ at the seams of the "
    "3 x 3 parts."
)


@pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Settings:
    """Which mosaics are the test split, and where to download them from."""

    fold: Literal["A", "B"]
    seam_px: Annotated[int, Field(ge=0)] = 0
    """Width of the unlabelled strip along the seams between parts."""
    url: str = RAW_URL
    patience: DownloadOptions = DEFAULTS


def about(settings: Settings) -> About:
    """The description of the data set."""
    return About.of(CLASSES, CREDIT.format(fold=settings.fold))


def download(settings: Settings, raw: Path) -> None:
    """Download images and masks, unless they are there.

    Raises:
        UserError: a file cannot be fetched or is not what is expected.
    """
    FILES.download(settings.url, raw, settings.patience)


def pairs(settings: Settings, raw: Path) -> Iterator[Pair]:
    """The scenes: whole mosaics, and the two largest cut into scenes.

    Raises:
        UserError: a file is missing or not the one expected.
    """
    if problems := FILES.problems(raw):
        raise UserError(problems[0])
    root = FILES.root(raw)
    assert root
    splits = FOLDS[settings.fold]
    for split, mosaics in splits.items():
        for mosaic in mosaics:
            image, label = _mosaic(root / f"Tile {mosaic}", settings.seam_px)
            for (overlapped, other), area in OVERLAPS.items():
                if overlapped == mosaic and split != "test" and other in splits["test"]:
                    label[area] = UNLABELLED
            yield from _scenes(split, mosaic, image, label)


def _mosaic(folder: Path, seam_px: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Image (H, W, 3) and label (H, W), joined from nine parts in row-major order."""
    images: list[NDArray[np.uint8]] = []
    labels: list[NDArray[np.uint8]] = []
    for number in range(1, 10):
        images.append(read_image(folder / f"images/image_part_{number:03}.jpg")[0])
        colours = read_image(folder / f"masks/image_part_{number:03}.png")[0]
        label = np.full(colours.shape[:2], UNLABELLED, np.uint8)
        for index, (_, colour) in enumerate(CLASSES):
            label[(colours == colour).all(-1)] = index
        labels.append(label)
    image, label = _join(images), _join(labels)
    half = (seam_px // 2, seam_px - seam_px // 2)
    for row in np.cumsum([part.shape[0] for part in labels[::3]])[:2]:
        label[row - half[0] : row + half[1]] = UNLABELLED
    for column in np.cumsum([part.shape[1] for part in labels[:3]])[:2]:
        label[:, column - half[0] : column + half[1]] = UNLABELLED
    return image, label


def _join(parts: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    rows = [np.concatenate(parts[i : i + 3], 1) for i in (0, 3, 6)]
    return np.concatenate(rows)


def _scenes(
    split: str, mosaic: int, image: NDArray[np.uint8], label: NDArray[np.uint8]
) -> Iterator[Pair]:
    rows, columns = CUTS.get(mosaic, (1, 1))
    for row, ys in enumerate(np.array_split(np.arange(label.shape[0]), rows)):
        for column, xs in enumerate(np.array_split(np.arange(label.shape[1]), columns)):
            box = slice(ys[0], ys[-1] + 1), slice(xs[0], xs[-1] + 1)
            part = f"-{row + 1}{column + 1}" if mosaic in CUTS else ""
            yield Pair(split, f"tile{mosaic}{part}", image[box], label[box])
