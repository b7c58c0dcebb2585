"""Decoding of label files: colours or numbers become class indices. A file with pixels of an unknown
colour or number is refused.

By colour, a pixel has the class whose colour is at most `tolerance` grey levels away in every channel;
a tolerance that makes this ambiguous is refused. By number, only the listed numbers are known. Pixels
that are hidden (transparent or nodata) in the image or in the label are unlabelled."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from bench.errors import UserError
from data.dataset import UNLABELLED, Pair, check_sizes
from data.image_file import read_image, read_numbers
from data.image_header import check_alignment, inspect

Level = Annotated[int, Field(ge=0, le=255)]
Colour = tuple[Level, Level, Level]
Decoder = Callable[[Path], NDArray[np.uint8]]
"""Decodes a label file to (H, W) uint8: 0..K-1 a class, 255 unlabelled."""

NO_CLASS = 254
"""Value of a decoder's table for colours that are no class; also the largest number of classes."""


@dataclass(frozen=True)
class Entry:
    """An image file, its label file, and the decoder of the label."""

    split: str
    id: str
    image: Path
    label: Path
    decode: Decoder

    def read(self) -> Pair:
        """Decode both files and check that they fit; pixels that are hidden in the image are unlabelled."""
        check_alignment(self.image, self.label)
        (image, hidden), label = read_image(self.image), self.decode(self.label)
        check_sizes(image.shape[:2], label.shape, self.label)
        if hidden is not None:
            label[hidden] = UNLABELLED
        return Pair(self.split, self.id, image, label)


@dataclass(frozen=True)
class Survey:
    """The images and labels found in a folder of raw files, and problems with them."""

    entries: list[Entry]
    problems: list[str]
    """A sentence each; `prepare` refuses a data set with problems."""
    notes: list[str] = field(default_factory=list)
    """Warnings, a sentence each."""
    square_px: int | None = None
    """Side of all images, for data sets whose images are squares of one size."""

    def valid_entries(self) -> list[Entry]:
        """The entries; raises a `UserError` for the first problem."""
        if self.problems:
            more = len(self.problems) - 1
            rest = f" ({more} more: `glnet-bench check` lists them)" if more else ""
            raise UserError(f"{self.problems[0].removesuffix('.')}{rest}.")
        return self.entries

    def pairs(self) -> Iterator[Pair]:
        """Read every image with its label; raises a `UserError` for a problem, or for an image that
        is not `square_px` x `square_px`."""
        for entry in self.valid_entries():
            pair, side = entry.read(), self.square_px
            if side and pair.label.shape != (side, side):
                raise UserError(
                    f"{entry.image} is {' x '.join(map(str, pair.label.shape))} px, but this data "
                    f"set has {side} x {side}: use an unchanged copy of the data set."
                )
            yield pair


def match_files(
    splits: Mapping[str, Iterable[str]],
    images: Mapping[str, Path],
    labels: Mapping[str, Path],
    decode: Decoder,
) -> Survey:
    """Match images and labels by id; an image without a label, or a label without an image, is a
    problem.

    Args:
        splits: ids that have an image and a label, by split.
        images, labels: files by id.
    """
    problems = [
        f"{files[id]} has no {what} in {next(iter(others.values())).parent}."
        for files, others, what in ((images, labels, "label"), (labels, images, "image"))
        for id in sorted(files.keys() - others.keys())
    ]
    entries = [
        Entry(split, id, images[id], labels[id], decode)
        for split, ids in splits.items()
        for id in ids
    ]
    return Survey(entries, problems)


def colour_decoder(
    colours: Sequence[tuple[int, int, int]],
    unlabelled: Sequence[tuple[int, int, int]] = (),
    tolerance: int = 0,
) -> Decoder:
    """A decoder of RGB masks with classes in the order of `colours`.

    Args:
        unlabelled: colours that mean no label.
        tolerance: grey levels that each channel may be off, 0..127.

    Raises:
        UserError: two colours are so close that a pixel could belong to both.
    """
    known = [*enumerate(colours), *((UNLABELLED, colour) for colour in unlabelled)]
    for (_, one), (_, other) in itertools.combinations(known, 2):
        distance = max(abs(a - b) for a, b in zip(one, other, strict=True))
        if distance <= 2 * tolerance:
            raise UserError(
                f"The colours {other} and {one} are {distance} grey levels apart, too close for a "
                f"tolerance of {tolerance}: lower it or change a colour."
            )
    table = np.full((256, 256, 256), NO_CLASS, np.uint8)
    for index, colour in known:
        r, g, b = (slice(max(c - tolerance, 0), c + tolerance + 1) for c in colour)
        table[r, g, b] = index

    def decode(path: Path) -> NDArray[np.uint8]:
        pixels, hidden = read_image(path)
        label: NDArray[np.uint8] = table[pixels[..., 0], pixels[..., 1], pixels[..., 2]]
        if hidden is not None:
            label[hidden] = UNLABELLED
        wrong = label == NO_CLASS
        if wrong.any():
            colour = tuple(pixels[wrong][0].tolist())
            raise UserError(
                f"{path} has {_count(wrong)} whose colour is within {tolerance} grey levels of no "
                f"class, the first {colour} at {_position(wrong)}: name the colour among the classes "
                "or as unlabelled, or raise the tolerance."
            )
        return label

    return decode


def id_decoder(ids: Mapping[int, int]) -> Decoder:
    """A decoder of masks of numbers.

    Args:
        ids: number in the file -> class index or 255; a 255 in the file is unlabelled unless it is
            listed.
    """
    meaning = {UNLABELLED: UNLABELLED} | dict(ids)
    known = np.array(sorted(meaning))
    classes = np.array([meaning[number] for number in known.tolist()], np.uint8)
    numbers = ", ".join(map(str, sorted(ids)))

    def decode(path: Path) -> NDArray[np.uint8]:
        nodata: Any = inspect(path, numbers=True).nodata  # may be None or NaN
        if ids.get(nodata, UNLABELLED) != UNLABELLED:
            raise UserError(
                f"{path} declares {int(nodata)} as nodata, which the settings make a class: remove the "
                "declaration (`gdal_edit.py -unsetnodata`), or list the number as unlabelled."
            )
        pixels, hidden = read_numbers(path)
        index = np.searchsorted(known, pixels).clip(max=len(known) - 1)
        label: NDArray[np.uint8] = classes[index]
        wrong = known[index] != pixels
        if hidden is not None:
            label[hidden], wrong = UNLABELLED, wrong & ~hidden
        if wrong.any():
            raise UserError(
                f"{path} has {_count(wrong)} with a number that is no class, the first "
                f"{int(pixels[wrong][0])} at {_position(wrong)}; known are {numbers}: list it among "
                "the classes or as unlabelled."
            )
        return label

    return decode


def _count(mask: NDArray[np.bool_]) -> str:
    count = int(mask.sum())
    return f"{count} px ({100 * count / mask.size:.3g} %)"


def _position(mask: NDArray[np.bool_]) -> str:
    row, column = np.unravel_index(int(mask.argmax()), mask.shape)
    return f"row {row}, column {column}"
