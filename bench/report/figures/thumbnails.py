"""Pictures of a test scene: image, label, and each run's labels beside what it got wrong."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from bench.errors import UserError
from bench.report import style
from bench.report.evaluations import scene_miou
from bench.report.figures import palette
from bench.report.load_records import Entry
from data.dataset import UNLABELLED, Dataset, read_pixels

SIDE_PX = 360
"""Longest side of a tile; twice what the page shows, for sharp screens and print."""
SHEET_PX = 240
"""The same on the sheet."""
PAIRS = 3
"""Runs side by side on the sheet, each with its labels and its errors."""
_GAP_PX, _TEXT_PX = 6, 20
_FONT = Path(mpl.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
UNLABELLED_RGB = (70, 70, 70)
_NEITHER = (176, 176, 176)
_GREYS = 24  # few levels: the faded image only has to be recognised, and the file stays small

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Tile:
    """One run on one scene."""

    run: str
    note: str
    """The scene's mIoU, or why there is none."""
    labels: Pixels | None
    """(h, w, 3), shrunk."""
    errors: Pixels | None


@dataclass(frozen=True)
class Scene:
    """Everything to be seen of one test scene, (h, w, 3) uint8 each."""

    name: str
    image: Pixels
    label: Pixels
    tiles: tuple[Tile, ...]
    legend: tuple[tuple[str, str], ...]
    """(class, hex colour)."""


def scene(dataset: Dataset, name: str, entries: Sequence[Entry]) -> Scene:
    """Shrink one test scene and what each run says of it; a run without a prediction says why.

    Raises:
        UserError: a prediction does not fit its label.
    """
    image, truth = dataset.arrays(name)
    photo = image.transpose(1, 2, 0)
    colours = _palette(dataset)
    small = _shrunk(photo, Image.Resampling.BOX)
    small_truth = _shrunk(truth, Image.Resampling.NEAREST)
    named = zip(dataset.classes, dataset.palette, strict=True)
    return Scene(
        name=name,
        image=small,
        label=colours[small_truth],
        tiles=tuple(_tile(e, name, truth, small, small_truth, colours) for e in entries),
        legend=(
            *((text.replace("_", " "), _hex(rgb)) for text, rgb in named),
            ("unlabelled", _hex(UNLABELLED_RGB)),
        ),
    )


def sheet(found: Scene) -> bytes:
    """One PNG with all tiles of a scene, for slides and papers."""
    height, width = _on_sheet(found.label, Image.Resampling.NEAREST).size[::-1]
    lines = -(-len(found.tiles) // PAIRS)
    wide, tall = width + _GAP_PX, height + _GAP_PX + _TEXT_PX
    paper = Image.new("RGB", (2 * PAIRS * wide - _GAP_PX, (1 + lines) * tall), "white")
    pen = ImageDraw.Draw(paper)
    pen.font = ImageFont.truetype(_FONT, 12)

    def put(column: int, line: int, pixels: Pixels | None, title: str, photo: bool = False) -> None:
        x, y = column * wide, line * tall
        pen.text((x, y + 2), title, fill=palette.INK)
        if pixels is not None:
            how = Image.Resampling.BOX if photo else Image.Resampling.NEAREST
            paper.paste(_on_sheet(pixels, how), (x, y + _TEXT_PX))

    put(0, 0, found.image, f"{found.name}: image", photo=True)
    put(1, 0, found.label, "label")
    _legend(pen, (*found.legend, ("wrong", palette.ERROR)), 2 * wide, _TEXT_PX)
    for place, tile in enumerate(found.tiles):
        column, line = 2 * (place % PAIRS), 1 + place // PAIRS
        put(column, line, tile.labels, tile.run)
        put(column + 1, line, tile.errors, tile.note)
    return png(paper.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE))


def png(picture: Image.Image) -> bytes:
    """PNG bytes."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def prediction(entry: Entry, name: str, truth: Pixels) -> Pixels | None:
    """What a run says of a test scene, (H, W) as its label; None where it has no picture.

    Raises:
        UserError: the picture is damaged, or does not fit the label.
    """
    path = entry.predictions / f"{name}.png"
    if scene_miou(entry, name) is None or not path.is_file():
        return None
    predicted = read_pixels(path, "L")
    if predicted.shape != truth.shape:
        raise UserError(f"{path} does not fit the label of {name}: run `dvc repro`.")
    return predicted


def _tile(
    entry: Entry, name: str, truth: Pixels, small: Pixels, small_truth: Pixels, colours: Pixels
) -> Tile:
    predicted = prediction(entry, name, truth)
    score = scene_miou(entry, name)
    if score is None or predicted is None:
        why = entry.status if score is None else "no picture"
        return Tile(run=entry.name, note=why, labels=None, errors=None)
    said = _shrunk(predicted, Image.Resampling.NEAREST)
    return Tile(
        run=entry.name,
        note=f"mIoU {style.percent(score)} %",
        labels=colours[said],
        errors=_errors(small, small_truth, said),
    )


def _hex(rgb: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*rgb)


def _palette(dataset: Dataset) -> Pixels:
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(dataset.palette)] = dataset.palette
    colours[UNLABELLED] = UNLABELLED_RGB
    return colours


def _shrunk(pixels: Pixels, how: Image.Resampling) -> Pixels:
    """At most SIDE_PX long; never enlarged."""
    height, width = pixels.shape[:2]
    factor = min(1.0, SIDE_PX / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(Image.fromarray(pixels).resize(size, how))


def _errors(image: Pixels, truth: Pixels, predicted: Pixels) -> Pixels:
    """Wrong pixels coloured over the faded image; unlabelled ones are neither right nor wrong."""
    level = image.mean(-1, keepdims=True) // (256 / _GREYS) / _GREYS
    shown: Pixels = (190 + 62 * level).astype(np.uint8).repeat(3, -1)
    shown[truth != predicted] = [round(255 * part) for part in to_rgb(palette.ERROR)]
    shown[truth == UNLABELLED] = _NEITHER
    return shown


def _on_sheet(pixels: Pixels, how: Image.Resampling) -> Image.Image:
    picture = Image.fromarray(pixels)
    factor = min(1.0, SHEET_PX / max(picture.size))
    width, height = (max(1, round(side * factor)) for side in picture.size)
    return picture.resize((width, height), how)


def _legend(
    pen: ImageDraw.ImageDraw, keys: Sequence[tuple[str, str]], x_px: int, y_px: int
) -> None:
    """Two columns of coloured squares with their names."""
    for number, (name, colour) in enumerate(keys):
        x, y = x_px + 170 * (number % 2), y_px + 19 * (number // 2)
        pen.rectangle((x, y + 2, x + 11, y + 13), fill=colour, outline=palette.GREY)
        pen.text((x + 18, y), name, fill=palette.INK)
