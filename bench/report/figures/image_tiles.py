"""Images that scene pages zoom into: one file each, or a pyramid of tiles where one file would be
too large for a browser to decode at once.

A pyramid has every halving of the image down to one tile, the smallest at level 0, as
OpenSeadragon counts them: PATH/LEVEL/COLUMN_ROW.ENDING."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.files import write_bytes

WHOLE_PX = 2560
"""Longest side of an image that stays one file: DeepGlobe's 2448 px do, Inria's 5000 do not."""
TILE_PX = 1024
"""Side of a tile: few files rather than small ones, for flat colours take little room."""

Pixels = NDArray[np.uint8]
Colour = tuple[int, int, int, int]
"""Red, green, blue, opacity, 0..255."""


@dataclass(frozen=True)
class Layer:
    """Where the browser finds an image."""

    path: str
    """Address of the file without its ending, or of the folder of tiles, from `root`."""
    ending: str
    width: int
    height: int
    levels: int
    """1: a single file."""
    tile_px: int


def write(root: Path, name: str, pixels: Pixels, colours: Sequence[Colour] | None = None) -> Layer:
    """Write an image below `root`.

    Args:
        name: path without an ending.
        pixels: (H, W) numbers of `colours`, written as a paletted PNG; or without them
            (H, W, 3) RGB, written as a JPEG whose colours are as sharp as its brightness.
    """
    ending = "png" if colours else "jpg"
    height, width = pixels.shape[:2]
    if max(height, width) <= WHOLE_PX:
        write_bytes(root / f"{name}.{ending}", encoded(pixels, colours))
        return Layer(quote(name), ending, width, height, 1, max(height, width))
    levels = pyramid(pixels)
    for level, image in enumerate(levels):
        for column, row, tile in tiles(image):
            path = root / name / str(level) / f"{column}_{row}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            # Not flushed one by one: there are thousands, and the page that shows them comes last.
            path.write_bytes(encoded(tile, colours))
    return Layer(quote(name), ending, width, height, len(levels), TILE_PX)


def pyramid(pixels: Pixels) -> list[Pixels]:
    """An image and its halvings, the smallest, which fits into one tile, first.

    Odd sides are rounded up. Colours of an image are averaged; of numbers (H, W) every second one
    is kept, so that shares of wrong pixels stay about the same.
    """
    found = [pixels]
    while max(found[0].shape[:2]) > TILE_PX:
        last = found[0]
        flat = last.ndim == 2
        found.insert(0, last[::2, ::2] if flat else np.asarray(Image.fromarray(last).reduce(2)))
    return found


def tiles(pixels: Pixels) -> Iterator[tuple[int, int, Pixels]]:
    """(column, row, tile) of an image; the last ones of a row or column are as large as what is
    left."""
    height, width = pixels.shape[:2]
    for top in range(0, height, TILE_PX):
        for left in range(0, width, TILE_PX):
            tile = pixels[top : top + TILE_PX, left : left + TILE_PX]
            yield left // TILE_PX, top // TILE_PX, tile


def encoded(pixels: Pixels, colours: Sequence[Colour] | None = None) -> bytes:
    """An image's file; see `write`."""
    buffer = io.BytesIO()
    if colours is None:
        image = Image.fromarray(np.ascontiguousarray(pixels))
        image.save(buffer, "JPEG", quality=90, subsampling=0, optimize=True)
        return buffer.getvalue()
    image = Image.fromarray(np.ascontiguousarray(pixels), mode="P")
    image.putpalette([part for colour in colours for part in colour[:3]])
    opacities = bytes(colour[3] for colour in colours)
    more = {} if set(opacities) == {255} else {"transparency": opacities}
    # Level 4 takes half the time of the default, 6, for two per cent more.
    image.save(buffer, "PNG", compress_level=4, **more)
    return buffer.getvalue()
