"""ISIC 2018, task 1: 2,594 dermoscopy images of many sizes with masks of the lesion.

Downloaded as the challenge's public archives, or read from archives or folders of the same names in
data/raw/NAME. The GLNet paper's split was never published; the split here is drawn by a seed."""

import re
from dataclasses import dataclass
from pathlib import Path

import pydantic
from pydantic import ConfigDict

from bench.errors import UserError
from data.dataset import About
from data.fetch import DEFAULTS, DownloadOptions, Remote, fetch, partial_folder
from data.labels import Survey, id_decoder, match_files
from data.splits import draw_splits
from data.unpack import find_folder, unpack, unpack_fetched

CLASSES = (("background", (0, 0, 0)), ("lesion", (255, 255, 255)))
SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}
IMAGES = 2594
LARGEST_BYTES = 40 * 2**30
CREDIT = (
    "ISIC 2018 challenge, task 1 (arXiv 1902.03368; doi:10.1038/sdata.2018.161). Split: drawn by "
    "the seed {seed}, 80 % train, 10 % val, 10 % test; the lists of the GLNet paper were never "
    "published, so its figures are not comparable image by image. Two means: over both classes, "
    "and without background, which is the IoU of the lesion."
)


@dataclass(frozen=True)
class Part:
    """One of the challenge's archives."""

    name: str
    """Name of the archive without `.zip`, and of the folder in it."""
    size_bytes: int
    """As several independent downloads had it."""
    pattern: str
    """Regular expression of the file names; the first group is the image's id."""


PARTS = (
    Part("ISIC2018_Task1-2_Training_Input", 11_165_358_566, r"(ISIC_\d+)\.jpg"),
    Part("ISIC2018_Task1_Training_GroundTruth", 27_402_895, r"(ISIC_\d+)_segmentation\.png"),
)


@pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Settings:
    """Where to download ISIC from, and the seed of the split."""

    seed: int = 0
    url: str = "https://isic-challenge-data.s3.amazonaws.com/2018"
    sizes_checked: bool = True
    """Whether to refuse an archive of another size than expected before downloading it."""
    patience: DownloadOptions = DEFAULTS


def about(settings: Settings) -> About:
    """The description of the data set."""
    return About.of(CLASSES, CREDIT.format(seed=settings.seed), rare=("background",))


def download(settings: Settings, raw: Path) -> None:
    """Download images and masks, unless they are there.

    Raises:
        UserError: an archive cannot be fetched or is not what is expected, or images are missing.
    """
    partial = partial_folder(raw)
    for part in PARTS:
        if _files(raw, part):
            continue
        archive = raw / f"{part.name}.zip"
        wanted = re.compile(f"(.*/)?{part.pattern}").fullmatch
        if archive.exists():
            unpack(archive, raw / part.name, wanted, LARGEST_BYTES)
            continue
        remote = Remote(
            f"{settings.url.rstrip('/')}/{archive.name}",
            archive.name,
            part.size_bytes if settings.sizes_checked else None,
            hint=(
                f"get {archive.name} from the challenge's page and put it into {raw}, or, if it "
                "was replaced there, set `sizes_checked: false`"
            ),
        )
        fetched = fetch(remote, partial, partial, settings.patience)
        unpack_fetched(fetched, raw / part.name, wanted, LARGEST_BYTES)
    survey(settings, raw).valid_entries()


def survey(settings: Settings, raw: Path) -> Survey:
    """The images in `raw`, split by the seed; missing images and masks are problems."""
    images, labels = (_files(raw, part) for part in PARTS)
    if not images or not labels:
        missing = PARTS[0].name if not images else PARTS[1].name
        raise UserError(f"{raw} holds no {missing}: run `dvc repro download`.")
    splits = draw_splits(images.keys() & labels.keys(), SHARES, settings.seed)
    found = match_files(splits, images, labels, id_decoder({0: 0, 255: 1}))
    if len(images) != IMAGES:
        found.problems.append(f"{raw} holds {len(images)} images where {IMAGES} are expected.")
    return found


def _files(raw: Path, part: Part) -> dict[str, Path]:
    """The files of one archive by image id, wherever it was unpacked."""
    folder = find_folder(raw, f"{part.name}/ISIC_*")
    paths = sorted(folder.iterdir()) if folder else []
    return {m[1]: path for path in paths if (m := re.fullmatch(part.pattern, path.name))}
