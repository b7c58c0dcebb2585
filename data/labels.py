"""Label decoding: colours or numbers become classes by explicit rules; a file with pixels that a rule does
not cover is refused, with their number.

By colour, a pixel has the class whose colour is at most `tolerance` grey levels away in every channel;
ambiguous tolerances are refused. By number, exactly the numbers that are listed are known. Hidden pixels
(transparent, nodata) are unlabelled, of the image as of the label."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from bench.errors import UserError
from data.dataset import UNLABELLED, Pair, check_sizes
from data.image_file import read_image, read_numbers
from data.image_header import check_places, inspect

Level = Annotated[int, Field(ge=0, le=255)]
Colour = tuple[Level, Level, Level]
Rule = Callable[[Path], NDArray[np.uint8]]
"""A label file -> (H, W): 0..K-1 a class, 255 unlabelled."""

UNKNOWN = 254
"""In a rule's table: no class; also the largest number of classes."""


@dataclass(frozen=True)
class Entry:
    """An image file, its label file, and the rule that decodes the label."""

    split: str
    id: str
    image: Path
    label: Path
    rule: Rule

    def read(self) -> Pair:
        """Decode both and check that they fit; pixels that the image hides are unlabelled."""
        check_places(self.image, self.label)
        (image, hidden), label = read_image(self.image), self.rule(self.label)
        check_sizes(image.shape[:2], label.shape, self.label)
        if hidden is not None:
            label[hidden] = UNLABELLED
        return Pair(self.split, self.id, image, label)


@dataclass(frozen=True)
class Survey:
    """The contents of a folder of raw files."""

    entries: list[Entry]
    problems: list[str]
    """Each a sentence; any of them keeps the data set from being prepared."""
    notes: list[str] = field(default_factory=list)
    """Warnings."""
    square_px: int | None = None
    """Side of all images, in data sets where they are squares of one size."""

    def sound(self) -> list[Entry]:
        """The entries; refuses the first problem."""
        if self.problems:
            more = len(self.problems) - 1
            rest = f" ({more} more: `glnet-bench check` lists them)" if more else ""
            raise UserError(f"{self.problems[0].removesuffix('.')}{rest}.")
        return self.entries

    def pairs(self) -> Iterator[Pair]:
        """Every image with its label; refuses images of another size than `square_px`."""
        for entry in self.sound():
            pair, side = entry.read(), self.square_px
            if side and pair.label.shape != (side, side):
                raise UserError(
                    f"{entry.image} is {' x '.join(map(str, pair.label.shape))} px, but this data "
                    f"set has {side} x {side}: it is from another or a changed copy."
                )
            yield pair


def survey_by_id(
    divided: Mapping[str, Iterable[str]],
    images: Mapping[str, Path],
    labels: Mapping[str, Path],
    rule: Rule,
) -> Survey:
    """The images of each split with their labels, and which have no label or no image.

    Args:
        divided: ids by split, each of an image and a label.
        images, labels: files by id.
    """
    problems = [
        f"{files[id]} has no {what} in {next(iter(others.values())).parent}."
        for files, others, what in ((images, labels, "label"), (labels, images, "image"))
        for id in sorted(files.keys() - others.keys())
    ]
    entries = [
        Entry(split, id, images[id], labels[id], rule)
        for split, ids in divided.items()
        for id in ids
    ]
    return Survey(entries, problems)


def by_colours(
    colours: Sequence[tuple[int, int, int]],
    unlabelled: Sequence[tuple[int, int, int]] = (),
    tolerance: int = 0,
) -> Rule:
    """A rule for RGB masks, whose classes are in the order of `colours`.

    Args:
        unlabelled: colours that mean no label.
        tolerance: grey levels that each channel may be off, 0..127.

    Raises:
        UserError: two colours are so close that a pixel could belong to both.
    """
    known = [*enumerate(colours), *((UNLABELLED, colour) for colour in unlabelled)]
    for place, (_, one) in enumerate(known):
        for _, other in known[:place]:
            apart = max(abs(a - b) for a, b in zip(one, other, strict=True))
            if apart <= 2 * tolerance:
                raise UserError(
                    f"The colours {one} and {other} are {apart} grey levels apart, which leaves a "
                    f"choice at a tolerance of {tolerance}: lower it or change a colour."
                )
    table = np.full((256, 256, 256), UNKNOWN, np.uint8)
    for index, colour in known:
        r, g, b = (slice(max(c - tolerance, 0), c + tolerance + 1) for c in colour)
        table[r, g, b] = index

    def rule(path: Path) -> NDArray[np.uint8]:
        pixels, hidden = read_image(path)
        label: NDArray[np.uint8] = table[pixels[..., 0], pixels[..., 1], pixels[..., 2]]
        if hidden is not None:
            label[hidden] = UNLABELLED
        wrong = label == UNKNOWN
        if wrong.any():
            colour = tuple(pixels[wrong][0].tolist())
            raise UserError(
                f"{path} has {_px(wrong)} whose colour is within {tolerance} grey levels of no "
                f"class, the first {colour} at {_place(wrong)}: name the colour among the classes "
                "or as unlabelled, or raise the tolerance."
            )
        return label

    return rule


def by_ids(ids: Mapping[int, int]) -> Rule:
    """A rule for masks of numbers.

    Args:
        ids: number in the file -> class index or 255; a 255 in the file is unlabelled unless it is
            listed.
    """
    meaning = {UNLABELLED: UNLABELLED} | dict(ids)
    known = np.array(sorted(meaning))
    classes = np.array([meaning[number] for number in known.tolist()], np.uint8)
    numbers = ", ".join(map(str, sorted(ids)))

    def rule(path: Path) -> NDArray[np.uint8]:
        nodata = inspect(path, numbers=True).nodata  # None, and not always finite
        marked = [number for number in ids if number == nodata and ids[number] != UNLABELLED]
        if marked:
            raise UserError(
                f"{path} says that {marked[0]} is nodata, and the settings make it a class: remove "
                "the mark (`gdal_edit.py -unsetnodata`), or list the number as unlabelled."
            )
        pixels, hidden = read_numbers(path)
        places = np.searchsorted(known, pixels).clip(max=len(known) - 1)
        label: NDArray[np.uint8] = classes[places]
        wrong = known[places] != pixels
        if hidden is not None:
            label[hidden], wrong = UNLABELLED, wrong & ~hidden
        if wrong.any():
            raise UserError(
                f"{path} has {_px(wrong)} with a number that is no class, the first "
                f"{int(pixels[wrong][0])} at {_place(wrong)}; known are {numbers}: list it among "
                "the classes or as unlabelled."
            )
        return label

    return rule


def _px(mask: NDArray[np.bool_]) -> str:
    count = int(mask.sum())
    return f"{count} px ({100 * count / mask.size:.3g} %)"


def _place(mask: NDArray[np.bool_]) -> str:
    row, column = np.unravel_index(int(mask.argmax()), mask.shape)
    return f"row {row}, column {column}"
