"""Pixels of image files, decoded through GDAL. Everything that reads an image file uses this module.

Images have at most 8 bits a channel. RGB is returned as it is, grey as three equal channels, and a
palette as its colours. Masks of numbers are returned as stored. Both are rotated and flipped according
to their EXIF or TIFF orientation. Pixels that are transparent or nodata are hidden."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from bench.errors import UserError
from data.image_header import MIB, ORIENTATIONS, Bytes, ImageFile, inspect, open_image

LARGEST_PX = 2**30
"""Largest image that is read whole."""
CHUNK_BYTES = 4 * MIB
"""Size of the rows that are read at once from a file without tiles."""


class Block(NamedTuple):
    """A part of an upright image."""

    top: int
    left: int
    pixels: NDArray[Any]
    """(h, w, 3) uint8 RGB; for masks and grey images (h, w)."""
    hidden: NDArray[np.bool_] | None
    """(h, w): transparent or nodata. None if the file can have no such pixel."""


def blocks(image: ImageFile) -> Iterator[Block]:
    """Decode every block of a file once.

    Raises:
        UserError: the file is damaged.
    """
    with open_image(image.path) as file:
        for top, left, height, width in _windows(image, file.height, file.width):
            window = Window(left, top, width, height)
            stored = file.read(image.bands, window=window)
            hidden = _hidden(image, file, window, stored[0]) if image.has_hidden_pixels else None
            pixels = stored[0] if len(stored) == 1 else stored.transpose(1, 2, 0)
            if image.colours is not None:
                pixels = image.colours[pixels, :3]
            yield _upright(image, Block(top, left, pixels, hidden))


def read_image(path: Path) -> tuple[Bytes, NDArray[np.bool_] | None]:
    """An image as (H, W, 3) uint8 RGB and its hidden pixels (H, W), or None if none can be hidden.

    Raises:
        UserError: as `inspect`, or the file is damaged.
    """
    pixels, hidden = _read_whole(inspect(path))
    return (pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, 2)), hidden


def read_numbers(path: Path) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """A mask of numbers as integers (H, W) and its hidden pixels (H, W), or None.

    Raises:
        UserError: as `inspect`, or the file is damaged, or has colours or fractions.
    """
    pixels, hidden = _read_whole(inspect(path, numbers=True))
    if pixels.ndim == 3:
        if not (pixels == pixels[..., :1]).all():
            raise UserError(
                f"{path} is an RGB mask where class numbers are expected: set `labels: colours` and "
                "give every class its colour."
            )
        pixels = pixels[..., 0]
    if pixels.dtype.kind == "f":
        if hidden is not None:
            pixels = np.where(hidden, 0, pixels)
        if not (np.isfinite(pixels) & (pixels == np.rint(pixels))).all():
            raise UserError(f"{path} has fractions where class numbers are expected.")
        pixels = np.clip(pixels, -(2**53), 2**53).astype(np.int64)
    return pixels, hidden


def _hidden(image: ImageFile, file: Any, window: Window, stored: Bytes) -> NDArray[np.bool_]:
    hidden = np.zeros(stored.shape, bool)
    if image.colours is not None:
        hidden |= image.colours[stored, 3] == 0
    if image.alpha is not None:
        hidden |= file.read(image.alpha, window=window) == 0
    if image.mask_bands:
        hidden |= ~file.read_masks(image.mask_bands, window=window).any(0)
    return hidden


def _upright(image: ImageFile, block: Block) -> Block:
    transpose, rows, columns = ORIENTATIONS[image.orientation]

    def orient(array: NDArray[Any]) -> NDArray[Any]:
        array = array.swapaxes(0, 1) if transpose else array
        return np.ascontiguousarray(array[:: -1 if rows else 1, :: -1 if columns else 1])

    pixels = orient(block.pixels)
    top, left = (block.left, block.top) if transpose else (block.top, block.left)
    return Block(
        image.height - top - pixels.shape[0] if rows else top,
        image.width - left - pixels.shape[1] if columns else left,
        pixels,
        None if block.hidden is None else orient(block.hidden),
    )


def _windows(image: ImageFile, rows: int, columns: int) -> Iterator[tuple[int, int, int, int]]:
    """(top, left, height, width) of the blocks to decode, as stored; together they cover the image."""
    height, width = image.block
    if width >= columns:  # not tiled: several blocks of rows at once
        row_bytes = columns * max(3, len(image.bands))
        height = max(1, CHUNK_BYTES // (row_bytes * height)) * height
    for top in range(0, rows, height):
        for left in range(0, columns, width):
            yield top, left, min(height, rows - top), min(width, columns - left)


def _read_whole(image: ImageFile) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    size = image.height, image.width
    if size[0] * size[1] > LARGEST_PX:
        raise UserError(
            f"{image.path} has {size[1]} x {size[0]} px, more than fits into memory: cut it into tiles."
        )
    pixels = hidden = None
    for block in blocks(image):
        if pixels is None:
            pixels = np.empty((*size, *block.pixels.shape[2:]), block.pixels.dtype)
            hidden = None if block.hidden is None else np.empty(size, bool)
        bottom, right = block.top + block.pixels.shape[0], block.left + block.pixels.shape[1]
        pixels[block.top : bottom, block.left : right] = block.pixels
        if hidden is not None:
            hidden[block.top : bottom, block.left : right] = block.hidden
    assert pixels is not None  # an image has pixels
    return pixels, hidden
