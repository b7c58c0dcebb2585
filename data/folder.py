"""Data sets of the user: data/raw/NAME/images and data/raw/NAME/labels, described by a suite.

An image and its label have the same file name, except for suffixes in the settings. The settings give
the colour or number of each class in the labels."""

import unicodedata
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import ConfigDict, Field

from bench.errors import UserError
from data.dataset import UNLABELLED, About
from data.image_header import SUFFIXES
from data.labels import NO_CLASS, Colour, Decoder, Survey, colour_decoder, id_decoder, match_files
from data.splits import Splits, resolve_splits

Number = Annotated[int, Field(ge=-(2**53), le=2**53)]
"""The number of a class, or a nodata value, which geographic software often sets to -9999."""
_STRICT = ConfigDict(extra="forbid")


@pydantic.dataclasses.dataclass(frozen=True, config=_STRICT)
class Class:
    """One class; the order of classes is the order of the network's outputs."""

    name: Annotated[str, Field(min_length=1)]
    colour: Colour
    """RGB in labels of colours, and for display."""
    id: Number | None = None
    """Number in labels of numbers; null: the index in the list, from 0."""


@pydantic.dataclasses.dataclass(frozen=True, config=_STRICT)
class Settings:
    """Classes, splits and file names."""

    classes: Annotated[tuple[Class, ...], Field(min_length=1, max_length=NO_CLASS)]
    labels: Literal["ids", "colours"]
    splits: Splits
    tolerance: Annotated[int, Field(ge=0, le=127)] = 0
    """Grey levels by which each channel of a mask may differ, for masks that were once JPEG files."""
    unlabelled: tuple[Number | Colour, ...] = ()
    """Numbers or colours of unlabelled pixels. The number 255 is unlabelled too, unless a class has it."""
    ignored: tuple[str, ...] = ()
    """Classes excluded from all means."""
    rare: tuple[str, ...] = ()
    """Classes excluded from a second mean."""
    image_suffix: str = ""
    """What follows the common name in the names of image files, for instance `_sat`."""
    label_suffix: str = ""
    duplicates: Literal["refuse", "warn"] = "refuse"
    """Whether an image that is in two splits is an error or a warning."""
    credit: str = ""
    """Source of the data, shown beside every result."""


def about(settings: Settings) -> About:
    """The description of the data set.

    Raises:
        UserError: two classes have the same name, or `ignored` or `rare` name an unknown class.
    """
    names = [one.name for one in settings.classes]
    for name in names:
        if name == "unlabelled":
            raise UserError(
                "'unlabelled' is not a class: list its number or colour under `unlabelled`."
            )
        if names.count(name) > 1:
            raise UserError(f"Two classes are called {name!r}: rename one.")
    for name in (*settings.ignored, *settings.rare):
        if name not in names:
            raise UserError(
                f"{name!r} is in `ignored` or `rare`, but not a class: choose from {', '.join(names)}."
            )
    _decoder(settings)
    return About.of(
        [(one.name, one.colour) for one in settings.classes],
        settings.credit,
        ignored=settings.ignored,
        rare=settings.rare,
        leaks_refused=settings.duplicates == "refuse",
    )


def download(settings: Settings, raw: Path) -> None:
    """Check that the user's files are there; nothing is downloaded."""
    about(settings)
    survey(settings, raw).valid_entries()


def survey(settings: Settings, raw: Path) -> Survey:
    """The files in data/raw/NAME, and all problems that can be found without decoding them.

    Raises:
        UserError: a folder is missing or empty, or the settings contradict each other.
    """
    problems: list[str] = []
    notes: list[str] = []
    images = _files(raw / "images", settings.image_suffix, problems, notes)
    labels = _files(raw / "labels", settings.label_suffix, problems, notes)
    ids = images.keys() & labels.keys()
    suffixes = (settings.image_suffix, settings.label_suffix)
    splits, split_problems = resolve_splits(settings.splits, ids, raw, suffixes)
    found = match_files(splits, images, labels, _decoder(settings))
    if left_out := len(ids) - len(found.entries):
        notes.append(f"{left_out} images are in no split and are left out.")
    return Survey(found.entries, problems + found.problems + split_problems, notes)


def _files(folder: Path, suffix: str, problems: list[str], notes: list[str]) -> dict[str, Path]:
    """Image files of a folder, by the name that an image and its label have in common."""
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
        # Unicode has two forms of some letters, and file systems differ in which they store.
        id = unicodedata.normalize("NFC", path.stem.removesuffix(suffix))
        if id.casefold() in folded:
            problems.append(f"{folded[id.casefold()]} and {path} have the same name: rename one.")
            continue
        found[id] = folded[id.casefold()] = path
    if not found:
        raise UserError(
            f"{folder} holds no PNG, JPEG or TIFF called *{suffix}: put the files there."
        )
    return found


def _decoder(settings: Settings) -> Decoder:
    """The decoder of label files."""
    colours = [one for one in settings.unlabelled if isinstance(one, tuple)]
    numbers = [one for one in settings.unlabelled if not isinstance(one, tuple)]
    if settings.labels == "colours":
        if numbers:
            raise UserError(
                f"Labels are colours, but {numbers[0]} is a number: write it as a colour."
            )
        return colour_decoder([one.colour for one in settings.classes], colours, settings.tolerance)
    if colours:
        raise UserError(f"Labels are ids, but {colours[0]} is a colour: write it as a number.")
    ids = dict.fromkeys(numbers, UNLABELLED)
    for index, one in enumerate(settings.classes):
        number = index if one.id is None else one.id
        if number in ids:
            raise UserError(
                f"The number {number} is used twice, once for {one.name!r}: change one."
            )
        ids[number] = index
    return id_decoder(ids)
