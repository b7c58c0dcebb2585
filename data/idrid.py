"""IDRiD, part A: 81 retinal images of 4288 x 2848 px with masks of four lesions and the optic disc.

Downloaded from a public copy at one commit, or read from the challenge's archive or folder in
data/raw/NAME. Train and test are the official splits; val is 9 of the 54 train images."""

from pathlib import Path
from typing import Literal

import numpy as np
import pydantic
from numpy.typing import NDArray
from pydantic import ConfigDict

from bench.errors import UserError
from data.dataset import About
from data.fetch import DEFAULTS, DownloadOptions
from data.image_file import read_image, read_numbers
from data.labels import Entry, Survey
from data.repository import RAW_URL, Repository

CLASSES = (
    ("background", (0, 0, 0)),
    ("microaneurysm", (230, 25, 75)),
    ("haemorrhage", (145, 30, 180)),
    ("hard_exudate", (255, 225, 25)),
    ("soft_exudate", (70, 240, 240)),
    ("optic_disc", (245, 245, 245)),
)
MASKS = {
    "optic_disc": "5. Optic Disc/{}_OD.tif",
    "soft_exudate": "4. Soft Exudates/{}_SE.tif",
    "haemorrhage": "2. Haemorrhages/{}_HE.tif",
    "hard_exudate": "3. Hard Exudates/{}_EX.tif",
    "microaneurysm": "1. Microaneurysms/{}_MA.tif",
}
"""Where masks overlap (9,408 of 989 million pixels), the later one in this table counts."""
FILES = Repository(
    "imsaksham-c/EyeDisease_IDRiD",
    "b82ed3a9f57283ee010ad8d5cf1ed80840d5ce9f",
    "dataset/A. Segmentation",
    Path(__file__).parent / "manifests/idrid.sha256",
)
FOLDERS = {"train": "a. Training Set", "test": "b. Testing Set"}
VAL = frozenset((1, 14, 19, 22, 31, 34, 36, 47, 50))
"""Numbers of the train images used for val, drawn by `data.splits.draw_splits` with seed 0."""
CREDIT = (
    "IDRiD, part A (Porwal, Pachade, Kokare; doi:10.3390/data3030025), CC BY 4.0. Official test "
    "set; val: 9 of the 54 train images, drawn by a seed. A pixel in several masks counts as "
    "microaneurysm, else hard exudate, haemorrhage, soft exudate, optic disc. Two means: over all "
    "classes, and without background."
)


@pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Settings:
    """Where to download IDRiD from, and which classes to distinguish."""

    alone: Literal["optic_disc", "hard_exudate"] | None = None
    """One class against all others, for coarse-to-fine; null: all six classes."""
    url: str = RAW_URL
    patience: DownloadOptions = DEFAULTS


def about(settings: Settings) -> About:
    """The description of the data set."""
    return About.of(_classes(settings), CREDIT, rare=("background",))


def download(settings: Settings, raw: Path) -> None:
    """Download images and masks, unless they are there.

    Raises:
        UserError: a file cannot be fetched or is not what is expected.
    """
    FILES.download(settings.url, raw, settings.patience)
    survey(settings, raw).valid_entries()


def survey(settings: Settings, raw: Path) -> Survey:
    """The images in `raw` by split; files that are missing or differ are problems."""
    root = FILES.root(raw)
    if root is None:
        raise UserError(FILES.problems(raw)[0])
    names = [name for name, _ in _classes(settings)]

    def decode(optic_disc: Path) -> NDArray[np.uint8]:
        """Merge the masks of an image, which lie beside that of the optic disc. A class without a
        file does not occur in the image."""
        label = np.zeros(_foreground(optic_disc).shape, np.uint8)
        for name, pattern in MASKS.items():
            mask = optic_disc.parents[1] / pattern.format(optic_disc.stem.removesuffix("_OD"))
            if name in names and mask.is_file():
                label[_foreground(mask)] = names.index(name)
        return label

    entries = []
    for split, folder in FOLDERS.items():
        for image in sorted((root / "1. Original Images" / folder).glob("IDRiD_*.jpg")):
            masks = root / "2. All Segmentation Groundtruths" / folder
            is_val = split == "train" and int(image.stem[-2:]) in VAL
            label = masks / MASKS["optic_disc"].format(image.stem)
            entries.append(Entry("val" if is_val else split, image.stem, image, label, decode))
    return Survey(entries, FILES.problems(raw))


def _foreground(mask: Path) -> NDArray[np.bool_]:
    """Whether each pixel of a mask (H, W) is not 0; one of the files stores colours, not numbers."""
    try:
        return np.asarray(read_numbers(mask)[0] != 0)
    except UserError:
        return np.asarray(read_image(mask)[0].any(-1))


def _classes(settings: Settings) -> list[tuple[str, tuple[int, int, int]]]:
    selected = ("background", settings.alone)
    return [one for one in CLASSES if settings.alone is None or one[0] in selected]
