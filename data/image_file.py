"""Pixels of image files, decoded through GDAL by one set of rules, wherever the suite reads one: in
training, prediction, the report and `glnet-bench check`.

Images have at most 8 bits a channel: RGB is kept, grey becomes three equal channels, a palette its
colours. Masks of numbers keep the numbers that the file stores. Both are turned upright, as their EXIF or
TIFF orientation says. Pixels that the file marks as transparent or as nodata are hidden."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from bench.errors import UserError
from data.image_header import MIB, TURNS, Bytes, ImageFile, inspect, opened

LARGEST_PX = 2**30
"""Images of more pixels are not held in memory."""
CHUNK_BYTES = 4 * MIB
"""Rows read at once from a file without tiles."""


class Block(NamedTuple):
    """A part of an upright image."""

    top: int
    left: int
    pixels: NDArray[Any]
    """(h, w, 3) uint8 RGB; of a mask (h, w), the numbers."""
    hidden: NDArray[np.bool_] | None
    """(h, w): transparent or nodata. None where the file can have no such pixel."""


def blocks(image: ImageFile) -> Iterator[Block]:
    """Decode every block of a file once.

    Raises:
        UserError: the file is damaged.
    """
    with opened(image.path) as file:
        for top, left, height, width in _windows(image, file.height, file.width):
            window = Window(left, top, width, height)
            stored = file.read(image.bands, window=window)
            hidden = _hidden(image, file, window, stored[0]) if image.hides else None
            pixels = stored[0] if len(stored) == 1 else stored.transpose(1, 2, 0)
            if image.colours is not None:
                pixels = image.colours[pixels, :3]
            yield _upright(image, Block(top, left, pixels, hidden))


def read_image(path: Path) -> tuple[Bytes, NDArray[np.bool_] | None]:
    """An image as (H, W, 3) uint8 RGB, and which of its pixels (H, W) are hidden, if any can be.

    Raises:
        UserError: as `inspect`, or the file is damaged.
    """
    pixels, hidden = _whole(inspect(path))
    return (pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, 2)), hidden


def read_numbers(path: Path) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """A mask of numbers as integers (H, W), and which of its pixels are hidden, if any can be.

    Raises:
        UserError: as `inspect`, or the file is damaged, or has colours or fractions.
    """
    pixels, hidden = _whole(inspect(path, numbers=True))
    if pixels.ndim == 3:
        if not (pixels == pixels[..., :1]).all():
            raise UserError(
                f"{path} is an RGB mask where numbers are due: set `labels: colours` and give "
                "every class its colour."
            )
        pixels = pixels[..., 0]
    if pixels.dtype.kind == "f":
        if hidden is not None:
            pixels = np.where(hidden, 0, pixels)
        if not (np.isfinite(pixels) & (pixels == np.rint(pixels))).all():
            raise UserError(f"{path} has fractions where numbers of classes are due.")
        pixels = np.clip(pixels, -(2**53), 2**53).astype(np.int64)
    return pixels, hidden


def _hidden(image: ImageFile, file: Any, window: Window, stored: Bytes) -> NDArray[np.bool_]:
    hidden = np.zeros(stored.shape, bool)
    if image.colours is not None:
        hidden |= image.colours[stored, 3] == 0
    if image.alpha is not None:
        hidden |= file.read(image.alpha, window=window) == 0
    if image.marked:
        hidden |= ~file.read_masks(image.marked, window=window).any(0)
    return hidden


def _upright(image: ImageFile, block: Block) -> Block:
    exchanged, rows, columns = TURNS[image.orientation]

    def turned(array: NDArray[Any]) -> NDArray[Any]:
        array = array.swapaxes(0, 1) if exchanged else array
        return np.ascontiguousarray(array[:: -1 if rows else 1, :: -1 if columns else 1])

    pixels = turned(block.pixels)
    top, left = (block.left, block.top) if exchanged else (block.top, block.left)
    return Block(
        image.height - top - pixels.shape[0] if rows else top,
        image.width - left - pixels.shape[1] if columns else left,
        pixels,
        None if block.hidden is None else turned(block.hidden),
    )


def _windows(image: ImageFile, rows: int, columns: int) -> Iterator[tuple[int, int, int, int]]:
    """(top, left, height, width), each block once, as stored."""
    height, width = image.block
    if width >= columns:  # rows: some at a time
        row = columns * max(3, len(image.bands))
        height = max(1, CHUNK_BYTES // (row * height)) * height
    for top in range(0, rows, height):
        for left in range(0, columns, width):
            yield top, left, min(height, rows - top), min(width, columns - left)


def _whole(image: ImageFile) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    size = image.height, image.width
    if size[0] * size[1] > LARGEST_PX:
        raise UserError(
            f"{image.path} says it has {size[1]} x {size[0]} px, more than can be held: cut it into "
            "tiles."
        )
    pixels = hidden = None
    for block in blocks(image):
        if pixels is None:
            pixels = np.empty((*size, *block.pixels.shape[2:]), block.pixels.dtype)
            hidden = None if block.hidden is None else np.empty(size, bool)
        place = np.s_[
            block.top : block.top + block.pixels.shape[0],
            block.left : block.left + block.pixels.shape[1],
        ]
        pixels[place] = block.pixels
        if hidden is not None:
            hidden[place] = block.hidden
    assert pixels is not None  # an image has pixels
    return pixels, hidden
