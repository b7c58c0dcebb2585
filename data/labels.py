"""Image decoding: image and label files become 8-bit arrays by explicit rules; files that a rule does
not cover are refused, with the number of pixels concerned.

Images: RGB is kept; grey becomes RGB; an opaque alpha channel is dropped. Labels by colour: a pixel
has the class whose colour is at most `tolerance` grey levels away in every channel; ambiguous
tolerances are refused. Labels by number: exactly the numbers that are listed. Both are rotated as
their EXIF tag says, as image viewers do."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydantic import Field

from bench.errors import UserError
from data.dataset import UNLABELLED, Pair, check_sizes

Level = Annotated[int, Field(ge=0, le=255)]
Colour = tuple[Level, Level, Level]
Rule = Callable[[Path], NDArray[np.uint8]]
"""A label file -> (H, W): 0..K-1 a class, 255 unlabelled."""

LARGEST_PX = 2**30
"""Images of more pixels are not decoded."""
FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
UNKNOWN = 254
"""In a rule's table: no class; also the largest number of classes."""
_ORIENTATION, _BITS = 0x0112, 258  # tags of EXIF and TIFF


@dataclass(frozen=True)
class Entry:
    """An image file, its label file, and the rule that decodes the label."""

    split: str
    id: str
    image: Path
    label: Path
    rule: Rule

    def read(self) -> Pair:
        """Decode both and check that their sizes agree."""
        image, label = read_image(self.image), self.rule(self.label)
        check_sizes(image.shape[:2], label.shape, self.label)
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


def read_image(path: Path) -> NDArray[np.uint8]:
    """An image as (H, W, 3) uint8 RGB.

    Raises:
        UserError: it cannot be decoded to its end, is no PNG, JPEG or TIFF or another than its name
            says, has more than 8 bits a channel, or transparent pixels, or other bands than grey or
            RGB.
    """
    with _opened(path) as image:
        image = _opaque(path, image)
        if image.mode not in ("RGB", "L"):
            raise UserError(
                f"{path} has the bands {image.mode}: save it as 8-bit RGB or grey "
                "(of more bands keep the three that are to be seen)."
            )
        return np.array(image.convert("RGB"))


def read_numbers(path: Path) -> NDArray[Any]:
    """A mask of numbers as (H, W), of up to 16 bits: grey levels, or the indices of a palette.

    Raises:
        UserError: as `read_image`; also a JPEG, or a mask of colours.
    """
    with _opened(path, deep=True) as image:
        if FORMATS.get(path.suffix.lower()) == "JPEG":
            raise UserError(f"{path} is a JPEG, which blurs the numbers of classes: use PNG.")
        if image.mode in ("P", "1", "I", "I;16", "I;16B", "I;16L"):
            return np.array(image)
        image = _opaque(path, image)
        if image.mode not in ("RGB", "L"):
            raise UserError(f"{path} has the bands {image.mode} where numbers of classes are due.")
        pixels = np.array(image)
    if image.mode == "L":
        return pixels
    if not (pixels == pixels[..., :1]).all():
        raise UserError(
            f"{path} is an RGB mask where numbers are due: set `labels: colours` and give every "
            "class its colour."
        )
    return pixels[..., 0]


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
        pixels = read_image(path)
        label: NDArray[np.uint8] = table[pixels[..., 0], pixels[..., 1], pixels[..., 2]]
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
    table = np.full(2**16, UNKNOWN, np.uint8)
    for number, index in ({UNLABELLED: UNLABELLED} | dict(ids)).items():
        table[number] = index
    numbers = ", ".join(map(str, sorted(ids)))

    def rule(path: Path) -> NDArray[np.uint8]:
        pixels = read_numbers(path)
        outside = (pixels < 0) | (pixels >= len(table))
        label: NDArray[np.uint8] = table[np.where(outside, 0, pixels)]
        wrong = outside | (label == UNKNOWN)
        if wrong.any():
            raise UserError(
                f"{path} has {_px(wrong)} with a number that is no class, the first "
                f"{int(pixels[wrong][0])} at {_place(wrong)}; known are {numbers}: list it among "
                "the classes or as unlabelled."
            )
        return label

    return rule


def is_turned(path: Path) -> bool:
    """Whether an image's EXIF tag rotates or mirrors it."""
    with _opened(path, deep=True, turn=False) as image:
        return image.getexif().get(_ORIENTATION, 1) not in (0, 1)


@contextmanager
def _opened(path: Path, deep: bool = False, turn: bool = True) -> Iterator[Image.Image]:
    """The decoded image, upright; `deep` allows 16 bits a pixel."""
    limit = Image.MAX_IMAGE_PIXELS
    try:
        Image.MAX_IMAGE_PIXELS = None  # the limit below holds instead
        with Image.open(path) as image:
            if image.width * image.height > LARGEST_PX:
                raise UserError(
                    f"{path} says it has {image.width} x {image.height} px, more than "
                    "can be held: cut it into tiles."
                )
            wanted = FORMATS.get(path.suffix.lower())
            if image.format != wanted:
                raise UserError(
                    f"{path} is a {image.format} by its content, not a {wanted or 'known format'}"
                    ": name it by what it is (PNG, JPEG and TIFF are read)."
                )
            if not deep and _bits(path, image) > 8:
                raise UserError(
                    f"{path} has {_bits(path, image)} bits a channel: save it with 8, scaled as "
                    "it is to be seen."
                )
            image.load()
            yield ImageOps.exif_transpose(image) if turn else image
    except FileNotFoundError:
        raise UserError(f"{path} is missing.") from None
    # Raised by Pillow for truncated and damaged files and for other kinds of files.
    except (OSError, SyntaxError, ValueError, EOFError, TypeError) as error:
        reason = " ".join(str(error).replace(str(path), "it").split())
        raise UserError(
            f"{path} cannot be decoded ({reason}): it is truncated, damaged or not an image; make "
            "or get it again."
        ) from None
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _bits(path: Path, image: Image.Image) -> int:
    """Bits a channel, also where Pillow would silently drop some."""
    if image.format == "PNG":
        with path.open("rb") as file:
            return file.read(25)[24]
    if image.format == "TIFF":
        tags: Any = image
        return max(map(int, tags.tag_v2.get(_BITS, (1,))))
    return 8


def _opaque(path: Path, image: Image.Image) -> Image.Image:
    """Without palette and alpha; refuses transparent pixels."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        hidden = np.array(image.getchannel("A")) < 255
        if hidden.any():
            raise UserError(
                f"{path} has {_px(hidden)} that are transparent, the first at {_place(hidden)}: "
                "save it without an alpha channel."
            )
    plain = {"1": "L", "P": "RGB", "RGBA": "RGB"}.get(image.mode)
    return image.convert(plain) if plain else image


def _px(mask: NDArray[np.bool_]) -> str:
    count = int(mask.sum())
    return f"{count} px ({100 * count / mask.size:.3g} %)"


def _place(mask: NDArray[np.bool_]) -> str:
    row, column = np.unravel_index(int(mask.argmax()), mask.shape)
    return f"row {row}, column {column}"
