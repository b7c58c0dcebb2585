"""User-provided images: data/raw/NAME/images and data/raw/NAME/labels, and a few lines of a suite.

An image and its label have one name, but for the suffixes that the settings name; what a label's
colours or numbers mean is said class by class."""

import unicodedata
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import ConfigDict, Field

from bench.errors import UserError
from data.dataset import UNLABELLED, About
from data.image_header import SUFFIXES
from data.labels import UNKNOWN, Colour, Rule, Survey, by_colours, by_ids, survey_by_id
from data.splits import Splits, own

Number = Annotated[int, Field(ge=-(2**53), le=2**53)]
"""That of a class, or nodata as geographic software writes it (-9999)."""
_STRICT = ConfigDict(extra="forbid")


@pydantic.dataclasses.dataclass(frozen=True, config=_STRICT)
class Class:
    """One class; their order is that of the networks' outputs."""

    name: Annotated[str, Field(min_length=1)]
    colour: Colour
    """In masks where labels are colours, and for display."""
    id: Number | None = None
    """In masks where labels are numbers; null: its place in the list, from 0."""


@pydantic.dataclasses.dataclass(frozen=True, config=_STRICT)
class Settings:
    """What the files in data/raw/NAME mean."""

    classes: Annotated[tuple[Class, ...], Field(min_length=1, max_length=UNKNOWN)]
    labels: Literal["ids", "colours"]
    splits: Splits
    tolerance: Annotated[int, Field(ge=0, le=127)] = 0
    """Grey levels that a mask's colours may be off in each channel, for masks that were JPEG
    once."""
    unlabelled: tuple[Number | Colour, ...] = ()
    """Numbers or colours that mean no label; the number 255 does so anyway, unless a class has
    it."""
    ignored: tuple[str, ...] = ()
    """Classes that no mean counts."""
    rare: tuple[str, ...] = ()
    """Classes without which the mean is given once more."""
    image_suffix: str = ""
    """What image files are called beyond the name that they share with their label: `_sat`."""
    label_suffix: str = ""
    duplicates: Literal["refuse", "warn"] = "refuse"
    """What an image that is in two splits leads to."""
    credit: str = ""
    """Where they come from; shown beside every result."""


def about(settings: Settings) -> About:
    """The description of the data set.

    Raises:
        UserError: two classes have one name, or `ignored` or `rare` name none.
    """
    names = [one.name for one in settings.classes]
    for name in names:
        if name == "unlabelled":
            raise UserError("'unlabelled' is no class: list what means it under `unlabelled`.")
        if names.count(name) > 1:
            raise UserError(f"Two classes are called {name!r}.")
    for name in (*settings.ignored, *settings.rare):
        if name not in names:
            raise UserError(
                f"{name!r} is ignored or rare, but no class; there is {', '.join(names)}."
            )
    _rule(settings)
    return About.of(
        [(one.name, one.colour) for one in settings.classes],
        settings.credit,
        ignored=settings.ignored,
        rare=settings.rare,
        leaks_refused=settings.duplicates == "refuse",
    )


def download(settings: Settings, raw: Path) -> None:
    """Nothing to fetch: an error says which files are missing."""
    about(settings)
    survey(settings, raw).sound()


def survey(settings: Settings, raw: Path) -> Survey:
    """The files in data/raw/NAME, and all problems that need no decoding.

    Raises:
        UserError: a folder is missing or empty, or the settings contradict themselves.
    """
    problems: list[str] = []
    notes: list[str] = []
    images = _files(raw / "images", settings.image_suffix, problems, notes)
    labels = _files(raw / "labels", settings.label_suffix, problems, notes)
    both = images.keys() & labels.keys()
    suffixes = (settings.image_suffix, settings.label_suffix)
    divided, wrong = own(settings.splits, both, raw, suffixes)
    found = survey_by_id(divided, images, labels, _rule(settings))
    if left_out := len(both) - len(found.entries):
        notes.append(f"{left_out} images are in no split and are left out.")
    return Survey(found.entries, problems + found.problems + wrong, notes)


def _files(folder: Path, suffix: str, problems: list[str], notes: list[str]) -> dict[str, Path]:
    """Image files of a folder by the name that image and label share."""
    if not folder.is_dir():
        raise UserError(
            f"{folder} is missing: put PNG, JPEG or TIFF files there, images in images/ and their "
            "labels under the same names in labels/."
        )
    suffix = Path(suffix).stem if Path(suffix).suffix.lower() in SUFFIXES else suffix  # _sat.png
    found: dict[str, Path] = {}
    folded: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.suffix.lower() not in SUFFIXES or not path.stem.endswith(suffix):
            notes.append(f"{path} is left out: not a PNG, JPEG or TIFF called *{suffix}.")
            continue
        # One letter may be written in two ways, and file systems differ in which they keep.
        id = unicodedata.normalize("NFC", path.stem.removesuffix(suffix))
        if id.casefold() in folded:
            problems.append(f"{folded[id.casefold()]} and {path} have one name: rename one.")
            continue
        found[id] = folded[id.casefold()] = path
    if not found:
        raise UserError(f"{folder} holds no PNG, JPEG or TIFF called *{suffix}.")
    return found


def _rule(settings: Settings) -> Rule:
    """The rule that decodes label files."""
    colours = [one for one in settings.unlabelled if isinstance(one, tuple)]
    numbers = [one for one in settings.unlabelled if not isinstance(one, tuple)]
    if settings.labels == "colours":
        if numbers:
            raise UserError(
                f"Labels are colours, but {numbers[0]} is a number: give it as a colour."
            )
        return by_colours([one.colour for one in settings.classes], colours, settings.tolerance)
    if colours:
        raise UserError(f"Labels are ids, but {colours[0]} is a colour: give it as a number.")
    ids = dict.fromkeys(numbers, UNLABELLED)
    for index, one in enumerate(settings.classes):
        number = index if one.id is None else one.id
        if number in ids:
            raise UserError(f"The number {number} has two meanings, one of them {one.name!r}.")
        ids[number] = index
    return by_ids(ids)
