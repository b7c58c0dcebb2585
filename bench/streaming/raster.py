"""Decodes image files to planes on disk, and encodes planes of labels to label files."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import rasterio
import rasterio.shutil
from rasterio.errors import RasterioError
from rasterio.windows import Window

from bench.errors import UserError
from bench.streaming.planes import Bytes, Plane
from bench.tiling import Box, cover
from data.dataset import UNLABELLED
from data.image_file import CHUNK_BYTES, blocks
from data.image_header import MIB, ImageFile, first_line, gdal, inspect

DRIVERS = {".tif": "GTiff", ".tiff": "GTiff", ".png": "PNG"}
COG = {"driver": "COG", "compress": "deflate", "overview_resampling": "mode"}
"""With overviews of the most frequent label."""
BLOCK_BYTES = 64 * MIB
"""Largest block that is decoded at once."""
TILE_PX = 512
Advance = Callable[[int], None]
"""Called with the number of pixels just processed."""


def inspect_large(path: Path, bands: Sequence[int] = ()) -> ImageFile:
    """Like `data.image_header.inspect`; also refuses a file that cannot be decoded in small parts."""
    image = inspect(path, bands)
    size = image.block[0] * image.block[1] * image.count
    if size > BLOCK_BYTES:
        raise UserError(
            f"{path} can only be decoded {image.block[0]} x {image.block[1]} px at once "
            f"({size / MIB:.0f} MiB, more than {BLOCK_BYTES // MIB}): convert it to tiles first "
            " (`gdal_translate -co TILED=YES -co COMPRESS=DEFLATE`)."
        )
    return image


def unpack(image: ImageFile, pixels: Plane, mask: Plane | None, advance: Advance) -> None:
    """Decode a file into a plane of three bytes a pixel.

    Args:
        mask: is set to 0 where a pixel is hidden, else 1.

    Raises:
        UserError: the file is damaged.
    """
    for block in blocks(image):
        found = block.pixels
        if found.ndim == 2:
            found = np.repeat(found[..., None], 3, 2)
        pixels.write(block.top, block.left, found)
        if mask and block.hidden is not None:
            mask.write(block.top, block.left, (~block.hidden).view(np.uint8))
        advance(found.shape[0] * found.shape[1])


def encode(
    labels: Plane,
    mask: Plane | None,
    image: ImageFile,
    palette: Sequence[tuple[int, int, int]],
    path: Path,
    driver: str,
    advance: Advance,
) -> None:
    """Write labels as a file with a palette and the image's georeference, and verify it by reading.

    Args:
        path: the file; its folder also holds an intermediate file.
        driver: a value of `DRIVERS`, or `COG`.

    Raises:
        UserError: the file could not be written.
    """
    colours = {number: (*colour, 255) for number, colour in enumerate(palette)}
    tiled = path.with_name("labels.tif")
    profile = {
        "driver": "GTiff",
        "dtype": "uint8",
        "count": 1,
        "height": labels.height,
        "width": labels.width,
        "nodata": UNLABELLED,
        "tiled": True,
        "blockxsize": TILE_PX,
        "blockysize": TILE_PX,
        "compress": "deflate",
        "bigtiff": "if_safer",
        **image.georeference,
    }
    try:
        with gdal():
            with rasterio.open(tiled, "w", **profile) as file:
                file.write_colormap(1, colours)
                for box in cover((labels.height, labels.width), (TILE_PX, TILE_PX)):
                    file.write(_labels(labels, mask, box), 1, window=_window(box))
                    advance(box.height * box.width)
            if driver == "GTiff":
                tiled.replace(path)
            else:
                options = COG if driver == "COG" else {"driver": driver}
                rasterio.shutil.copy(tiled, path, **options)
                tiled.unlink()
            _verify(path, labels, mask)
    except (RasterioError, OSError) as error:
        raise UserError(
            f"The labels cannot be written to {path.parent} ({first_line(error)}): free some "
            "space there and run the same command again; it resumes."
        ) from None


def _labels(labels: Plane, mask: Plane | None, box: Box) -> Bytes:
    """The labels in a box (h, w); hidden pixels are unlabelled."""
    found = labels.read(*box)[..., 0]
    if mask:
        found[mask.read(*box)[..., 0] == 0] = UNLABELLED
    return found


def _window(box: Box) -> Window:
    return Window(box.left, box.top, box.width, box.height)


def _verify(path: Path, labels: Plane, mask: Plane | None) -> None:
    """Compare the file with the labels: GDAL writes the last blocks when it closes a file, and may not
    report an error then."""
    rows = max(1, CHUNK_BYTES // labels.width)
    with rasterio.open(path) as file:
        for box in cover((labels.height, labels.width), (rows, labels.width)):
            if not np.array_equal(file.read(1, window=_window(box)), _labels(labels, mask, box)):
                raise OSError(f"rows from {box.top} on read back differently")
