"""Inria Aerial Image Labeling: 180 labelled tiles of 5000 x 5000 px from five cities, buildings.

Downloaded as Inria's 7z archive in five volumes, or read from volumes or an unpacked
`AerialImageDataset` in data/raw/NAME. The 180 tiles without labels are not unpacked."""

import re
import shutil
from pathlib import Path
from typing import Annotated

import pydantic
from pydantic import ConfigDict, Field

from bench.errors import UserError
from data.dataset import About
from data.fetch import DEFAULTS, DownloadOptions, Remote, fetch, partial_folder
from data.labels import Survey, id_decoder
from data.published import Published
from data.unpack import archive_in, unpack

CLASSES = (("background", (0, 0, 0)), ("building", (255, 255, 255)))
COMMIT = "6fdb0c02f22efbf267781857c9ee7f7ebc951974"
PUBLISHED = Published(
    {
        "train": "18d394e269eee5108e0abc5e75091718f2267c419bd93e7b7a6e9c341ae5cbf7",  # 126 images
        "val": "38f1c83954dbb227d393f0c116728da64ce0a80f68403ec421b8b777a9ba0847",  # 27 images
        "test": "977265ea075a0935838e174a45ef47b09a446a4eaa31da7e08fe7aa29425ea27",  # 27 images
    },
    suffix="_sat.tif",
    patterns=("train/gt",),
    image="images/{}.tif",
    label="gt/{}.tif",
)
"""The splits of FCtL, as published beside its code at COMMIT; GLNet's own are not."""
VOLUMES = (
    "17a7d95c78e484328fd8fe5d5afa2b505e04b8db8fceb617819f3c935d1f39ec",
    "b505cb223964b157823e88fbd5b0bd041afcbf39427af3ca1ce981ff9f61aff4",
    "752916faa67be6fc6693f8559531598fa2798dc01b7d197263e911718038252e",
    "b3893e78f92572455fc2c811af560a558d2a57f9b92eff62fa41399b607a6f44",
    "a92eb20fdc9911c5ffe3afc514490b8f1e1e5b22301a6fc55d3b4e1624d8033f",
)
"""SHA-256 of each volume, as published by another project; Inria publishes none."""
TILES = re.compile(r"(.*/)?train/(images|gt)/[^/]+\.tif").fullmatch
"""Members of the inner archive to unpack: labelled tiles and their labels."""
LARGEST_BYTES = 60 * 2**30
CREDIT = (
    "Inria Aerial Image Labeling (doi:10.1109/IGARSS.2017.8127684). Split: FCtL's published lists "
    f"(commit {COMMIT[:7]}), 126 train, 27 val, 27 test of the 180 labelled tiles; tiles of one "
    "city are in several splits, so that figures are not those of the official leaderboard. Two "
    "means: over both classes, and without background, which is the IoU of buildings that papers "
    "print."
)


@pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Settings:
    """Where to download Inria Aerial from; the prepared data do not depend on it."""

    url: str = "https://files.inria.fr/aerialimagelabeling"
    lists_url: str = f"https://raw.githubusercontent.com/liqiokkk/FCtL/{COMMIT}/txt_1"
    side_px: Annotated[int, Field(ge=1)] = 5000
    """Tiles of another size are refused."""
    patience: DownloadOptions = DEFAULTS


def about(settings: Settings) -> About:
    """The description of the data set."""
    return About.of(CLASSES, CREDIT, rare=("background",))


def download(settings: Settings, raw: Path) -> None:
    """Download the lists, and the labelled tiles unless they are there.

    Raises:
        UserError: a volume cannot be fetched or is not the one expected, or tiles are missing.
    """
    partial = partial_folder(raw)
    PUBLISHED.fetch_lists(settings.lists_url, raw, settings.patience)
    if PUBLISHED.folder(raw) is None:
        if archive := archive_in(raw):
            _unpack(archive, raw, partial)
        else:
            volumes = []
            for number, sha256 in enumerate(VOLUMES, start=1):
                name = f"aerialimagelabeling.7z.{number:03}"
                hint = f"get the volumes from the data set's page and put them into {raw}"
                url = f"{settings.url.rstrip('/')}/{name}"
                remote = Remote(url, name, None, sha256, hint)
                volumes.append(fetch(remote, partial, partial, settings.patience))
            _unpack(volumes[0], raw, partial)
            for volume in volumes:
                volume.unlink()
    survey(settings, raw).valid_entries()


def survey(settings: Settings, raw: Path) -> Survey:
    """The tiles of the published lists; missing ones are problems."""
    return PUBLISHED.survey(raw, id_decoder({0: 0, 255: 1}), settings.side_px)


def _unpack(archive: Path, raw: Path, partial: Path) -> None:
    """Unpack the tiles. The 7z archive holds one zip with the tiles; users may also provide the zip."""
    if archive.suffix.lower() == ".zip":
        unpack(archive, raw / "unpacked", TILES, LARGEST_BYTES)
        return
    inner = partial / "inner"
    unpack(archive, inner, lambda name: name.lower().endswith(".zip"), LARGEST_BYTES)
    zips = [path for path in sorted(inner.rglob("*")) if path.is_file()]
    if len(zips) != 1:
        raise UserError(f"{archive} holds {len(zips)} zip files where one is expected.")
    unpack(zips[0], raw / "unpacked", TILES, LARGEST_BYTES)
    shutil.rmtree(inner)
