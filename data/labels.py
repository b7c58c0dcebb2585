"""Pictures at the door: what an image or a label file holds becomes one 8-bit form by a stated
rule, or is refused with the number of pixels that the rule does not cover.

Images: RGB as they are; grey becomes RGB; an alpha channel is dropped where it is opaque. Labels by
colour: a pixel has the class whose colour is at most `tolerance` grey levels away in every channel,
and tolerances are refused that could leave a choice. Labels by number: exactly the numbers that are
listed. Both are turned as their EXIF tag says, as every viewer shows them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
"""A picture that claims more is not decoded."""
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
    """An image file, its label file, and how the label is to be understood."""

    split: str
    id: str
    image: Path
    label: Path
    rule: Rule

    def read(self) -> Pair:
        """Both decoded and checked against each other."""
        image, label = read_image(self.image), self.rule(self.label)
        check_sizes(image.shape[:2], label.shape, self.label)
        return Pair(self.split, self.id, image, label)


@dataclass(frozen=True)
class Survey:
    """What a folder of raw files holds."""

    entries: list[Entry]
    problems: list[str]
    """Each a sentence; with any the data set is not prepared."""
    notes: tuple[str, ...] = ()
    """What is strange but no obstacle."""

    def sound(self) -> list[Entry]:
        """The entries; refuses the first problem."""
        if self.problems:
            more = len(self.problems) - 1
            rest = f" ({more} more: `glnet-bench check` lists them)" if more else ""
            raise UserError(f"{self.problems[0].removesuffix('.')}{rest}.")
        return self.entries


def missing(entries: Iterable[Entry]) -> list[str]:
    """A sentence for each file that published lists name and that is not there."""
    return [
        f"{path} is missing, which the published lists name."
        for entry in entries
        for path in (entry.image, entry.label)
        if not path.is_file()
    ]


def read_squares(entries: Iterable[Entry], side_px: int, name: str) -> Iterator[Pair]:
    """Every pair of a data set whose images all are squares of one size; refuses any other."""
    for entry in entries:
        pair = entry.read()
        height, width = pair.label.shape
        if (height, width) != (side_px, side_px):
            raise UserError(
                f"{entry.image} is {height} x {width} px, but {name} has {side_px} x {side_px}: it "
                "is of another or a changed copy."
            )
        yield pair


def read_image(path: Path) -> NDArray[np.uint8]:
    """An image as (H, W, 3) uint8 RGB.

    Raises:
        UserError: it cannot be decoded to its end, is no PNG, JPEG or TIFF or another than its name
            says, has more than 8 bits a channel, or transparent pixels, or other bands than grey or
            RGB.
    """
    with _opened(path) as picture:
        picture = _opaque(path, picture)
        if picture.mode not in ("RGB", "L"):
            raise UserError(
                f"{path} has the bands {picture.mode}: save it as 8-bit RGB or grey "
                "(of more bands keep the three that are to be seen)."
            )
        return np.array(picture.convert("RGB"))


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
        with _opened(path) as picture:
            picture = _opaque(path, picture)
            if picture.mode not in ("RGB", "L"):
                raise UserError(f"{path} has the bands {picture.mode}: save it as 8-bit RGB.")
            pixels = np.array(picture.convert("RGB"))
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
        with _opened(path, deep=True) as picture:
            if FORMATS.get(path.suffix.lower()) == "JPEG":
                raise UserError(f"{path} is a JPEG, which blurs the numbers of classes: use PNG.")
            if picture.mode == "P":
                pixels = np.array(picture)  # the numbers, whatever the palette shows
            elif picture.mode in ("1", "I", "I;16", "I;16B", "I;16L"):
                pixels = np.array(picture).astype(np.int64)
            else:
                pixels = _grey(path, _opaque(path, picture))
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
    """Whether a picture's EXIF tag turns or mirrors it."""
    with _opened(path, deep=True, turn=False) as picture:
        return picture.getexif().get(_ORIENTATION, 1) not in (0, 1)


def _grey(path: Path, picture: Image.Image) -> NDArray[Any]:
    pixels = np.array(picture)
    if picture.mode == "RGB" and not (pixels == pixels[..., :1]).all():
        raise UserError(
            f"{path} is an RGB mask where numbers are due: set `labels: colours` and give every "
            "class its colour."
        )
    if picture.mode not in ("RGB", "L"):
        raise UserError(f"{path} has the bands {picture.mode} where numbers of classes are due.")
    return pixels if pixels.ndim == 2 else pixels[..., 0]


@contextmanager
def _opened(path: Path, deep: bool = False, turn: bool = True) -> Iterator[Image.Image]:
    """The decoded picture, upright; `deep` lets 16 bits a pixel pass."""
    limit = Image.MAX_IMAGE_PIXELS
    try:
        Image.MAX_IMAGE_PIXELS = None  # ours is the limit below: large images are what this is for
        with Image.open(path) as picture:
            if picture.width * picture.height > LARGEST_PX:
                raise UserError(
                    f"{path} says it has {picture.width} x {picture.height} px, more than "
                    "can be held: cut it into tiles."
                )
            wanted = FORMATS.get(path.suffix.lower())
            if picture.format != wanted:
                raise UserError(
                    f"{path} is a {picture.format} by its content, not a {wanted or 'known format'}"
                    ": name it by what it is (PNG, JPEG and TIFF are read)."
                )
            if not deep and _bits(path, picture) > 8:
                raise UserError(
                    f"{path} has {_bits(path, picture)} bits a channel: save it with 8, scaled as "
                    "it is to be seen."
                )
            picture.load()
            yield ImageOps.exif_transpose(picture) if turn else picture
    except FileNotFoundError:
        raise UserError(f"{path} is missing.") from None
    # Pillow's words for truncated and damaged files and for those that are no pictures.
    except (OSError, SyntaxError, ValueError, EOFError, TypeError) as error:
        reason = " ".join(str(error).replace(str(path), "it").split())
        raise UserError(
            f"{path} cannot be decoded ({reason}): it is cut short, damaged or no picture."
        ) from None
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _bits(path: Path, picture: Image.Image) -> int:
    """Bits a channel, also where Pillow would quietly drop some."""
    if picture.format == "PNG":
        with path.open("rb") as file:
            return file.read(25)[24]
    if picture.format == "TIFF":
        tags: Any = picture
        return max(map(int, tags.tag_v2.get(_BITS, (1,))))
    return 8


def _opaque(path: Path, picture: Image.Image) -> Image.Image:
    """Without palette and alpha; refuses an alpha channel that hides something."""
    if picture.mode == "1":
        return picture.convert("L")
    transparent = "transparency" in picture.info
    if picture.mode == "P" or transparent:
        picture = picture.convert("RGBA" if transparent else "RGB")
    if picture.mode not in ("RGBA", "LA", "PA"):
        return picture
    hidden = np.array(picture.getchannel("A")) < 255
    if hidden.any():
        raise UserError(
            f"{path} has {_px(hidden)} that are transparent, the first at {_place(hidden)}: save "
            "it without an alpha channel."
        )
    return picture.convert("L" if picture.mode == "LA" else "RGB")


def _px(mask: NDArray[np.bool_]) -> str:
    count = int(mask.sum())
    return f"{count} px ({100 * count / mask.size:.3g} %)"


def _place(mask: NDArray[np.bool_]) -> str:
    row, column = np.unravel_index(int(mask.argmax()), mask.shape)
    return f"row {row}, column {column}"
