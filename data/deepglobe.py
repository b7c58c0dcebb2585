"""DeepGlobe land cover: 803 labelled satellite images of 2448 x 2448 px, seven classes.

Downloaded from Kaggle with the user's token, or read from an archive or a folder in data/raw/NAME:
`train/ID_sat.jpg` with `train/ID_mask.png`, or the same in `land-train/`."""

import re
from pathlib import Path
from typing import Annotated

import pydantic
from pydantic import ConfigDict, Field

from bench.errors import UserError
from data.dataset import About
from data.fetch import DownloadOptions, Remote, fetch, partial_folder
from data.kaggle import URL, credentials
from data.labels import Survey, colour_decoder
from data.published import Published
from data.unpack import archive_in, unpack, unpack_fetched

# In the order of the official GLNet code.
CLASSES: tuple[tuple[str, tuple[int, int, int]], ...] = (
    ("unknown", (0, 0, 0)),
    ("urban", (0, 255, 255)),
    ("agriculture", (255, 255, 0)),
    ("rangeland", (255, 0, 255)),
    ("forest", (0, 255, 0)),
    ("water", (0, 0, 255)),
    ("barren", (255, 255, 255)),
)
TOLERANCE = 127
"""The challenge's rule: a channel of a mask is on from 128."""
COMMIT = "7b7bdee196e368a1f3a32c54b984915f8e397275"
PUBLISHED = Published(
    {
        "train": "f97752260ccd392c81534c46c911c039ee5bcdb4821196c0ba824306b897dcf1",  # 454 images
        "val": "c6d42561abdf32c7692393522de5c3fb2e0575aecbb63052e3cf6bc97a48d260",  # 207 images
        "test": "d35ae7fb5102c934b9005c81ed3604afa14c357ca796ddb71a8ad6f31e47ae46",  # 142 images
    },
    suffix="_sat.jpg",
    patterns=("train/*_mask.png", "land-train/*_mask.png"),
    image="{}_sat.jpg",
    label="{}_mask.png",
)
"""The splits of GLNet, as published beside its code at COMMIT."""
WANTED = re.compile(r"(.*/)?(land-)?train/[^/]*(_sat\.jpg|_mask\.png)").fullmatch
"""Members of an archive to unpack: labelled images, not those of the other folders."""
LARGEST_BYTES = 8 * 2**30
CREDIT = (
    "DeepGlobe 2018 land cover challenge (arXiv 1805.06561). Split: GLNet's published lists "
    f"(commit {COMMIT[:7]}), 454 train, 207 val (crossvali), 142 test; val picks, test reports. "
    "The class unknown is left out of the mean."
)


@pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Settings:
    """Where to download DeepGlobe from; the prepared data do not depend on it."""

    kaggle: str = "balraj98/deepglobe-land-cover-classification-dataset"
    kaggle_url: str = URL
    lists_url: str = f"https://raw.githubusercontent.com/VITA-Group/GLNet/{COMMIT}"
    side_px: Annotated[int, Field(ge=1)] = 2448
    """Images of another size are refused."""
    patience: DownloadOptions = DownloadOptions(connections=2, block_bytes=64 * 2**20)
    """Few and large blocks, since Kaggle limits the number of requests."""


def about(settings: Settings) -> About:
    """The description of the data set."""
    return About.of(CLASSES, CREDIT, ignored=("unknown",))


def download(settings: Settings, raw: Path) -> None:
    """Download the lists, and unpack the images from an archive in `raw`, or else from Kaggle.

    Raises:
        UserError: there is neither an archive nor a token, or images are missing.
    """
    partial = partial_folder(raw)
    PUBLISHED.fetch_lists(settings.lists_url, raw, settings.patience)
    if PUBLISHED.folder(raw) is None:
        if archive := archive_in(raw):
            unpack(archive, raw / "unpacked", WANTED, LARGEST_BYTES)
        else:
            fetched = _from_kaggle(settings, raw, partial)
            unpack_fetched(fetched, raw / "unpacked", WANTED, LARGEST_BYTES)
    survey(settings, raw).valid_entries()


def survey(settings: Settings, raw: Path) -> Survey:
    """The images of the published lists; missing ones are problems."""
    decode = colour_decoder([colour for _, colour in CLASSES], tolerance=TOLERANCE)
    return PUBLISHED.survey(raw, decode, settings.side_px)


def _from_kaggle(settings: Settings, raw: Path, partial: Path) -> Path:
    auth = credentials()
    if auth is None:
        raise UserError(
            f"{raw} holds no images, and there is no Kaggle token: set KAGGLE_USERNAME and "
            "KAGGLE_KEY or save your account's kaggle.json in ~/.kaggle, or put the data set's zip "
            f"file or its train folder into {raw}."
        )
    remote = Remote(
        f"{settings.kaggle_url.rstrip('/')}/{settings.kaggle}",
        "deepglobe.zip",
        hint=f"open the page of {settings.kaggle} on Kaggle with your account, accept its terms, "
        "and check the token",
    )
    return fetch(remote, partial, partial, settings.patience, auth)
