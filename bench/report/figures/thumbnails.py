"""One image a test scene for slides and papers: labels and errors of every run in small."""

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
from data.dataset import UNLABELLED, Dataset
from data.labels import read_numbers

SIDE_PX = 240
"""Longest side of a thumbnail."""
PAIRS = 3
"""Runs side by side, each with its labels and its errors."""
RIGHT, WRONG, NEITHER = range(3)
"""Pixels of an error map; neither: unlabelled, or of a class that no mean counts."""
ERROR_RGB = tuple(round(255 * part) for part in to_rgb(palette.ERROR))
UNLABELLED_RGB = (70, 70, 70)
_GREYS = 24  # few levels keep the file small
_GAP_PX, _TEXT_PX = 6, 20

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Tile:
    """One run on one scene; its (h, w, 3) thumbnails are None without a prediction."""

    run: str
    note: str
    """The scene's mIoU, or why there is none."""
    labels: Pixels | None = None
    errors: Pixels | None = None


@dataclass(frozen=True)
class Scene:
    """Thumbnails of one test scene, (h, w, 3) each."""

    name: str
    image: Pixels
    label: Pixels
    tiles: tuple[Tile, ...]
    legend: tuple[tuple[str, str], ...]
    """(class, hex colour)."""


def scene(dataset: Dataset, name: str, entries: Sequence[Entry]) -> Scene:
    """Shrink one test scene and the predictions of all runs.

    Raises:
        UserError: a prediction does not fit its label.
    """
    image, truth = dataset.arrays(name)
    small = _shrunk(image.transpose(1, 2, 0), Image.Resampling.BOX)
    small_truth = _shrunk(truth)
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(dataset.palette)] = dataset.palette
    colours[UNLABELLED] = UNLABELLED_RGB
    ignored = [dataset.classes.index(name) for name in dataset.ignored]
    level = small.mean(-1, keepdims=True) // (256 / _GREYS) / _GREYS
    faded = (190 + 62 * level).astype(np.uint8).repeat(3, -1)

    def tile(entry: Entry) -> Tile:
        predicted, score = prediction(entry, name, truth), scene_miou(entry, name)
        if predicted is None:
            return Tile(entry.name, entry.status if score is None else "no prediction")
        labels = _shrunk(predicted)
        found = errors(small_truth, labels, ignored)
        shown = np.where((found == WRONG)[..., None], np.array(ERROR_RGB, np.uint8), faded)
        shown[found == NEITHER] = 176
        return Tile(entry.name, f"mIoU {style.percent(score)} %", colours[labels], shown)

    return Scene(
        name, small, colours[small_truth], tuple(map(tile, entries)), tuple(legend(dataset))
    )


def legend(dataset: Dataset) -> list[tuple[str, str]]:
    """(class, hex colour), the last one for pixels without a label."""
    names = [*(name.replace("_", " ") for name in dataset.classes), "unlabelled"]
    colours = (*dataset.palette, UNLABELLED_RGB)
    return [(n, "#{:02x}{:02x}{:02x}".format(*rgb)) for n, rgb in zip(names, colours, strict=True)]


def errors(truth: Pixels, predicted: Pixels, ignored: Sequence[int]) -> Pixels:
    """RIGHT, WRONG or NEITHER for each pixel (H, W); `ignored`: classes that no mean counts."""
    found = np.where(truth == predicted, np.uint8(RIGHT), np.uint8(WRONG))
    found[np.isin(truth, [UNLABELLED, *ignored])] = NEITHER
    return found


def prediction(entry: Entry, name: str, truth: Pixels) -> Pixels | None:
    """The labels (H, W) that a run predicted for a test scene, if their file exists.

    Raises:
        UserError: the file is damaged, or does not fit the label.
    """
    path = entry.predictions / f"{name}.png"
    if scene_miou(entry, name) is None or not path.is_file():
        return None
    predicted = read_numbers(path)
    if predicted.shape != truth.shape:
        raise UserError(f"{path} does not fit the label of {name}: run `dvc repro`.")
    return predicted


def sheet(found: Scene) -> bytes:
    """One PNG with all thumbnails of a scene and the legend."""
    height, width = found.label.shape[:2]
    wide, tall = width + _GAP_PX, height + _GAP_PX + _TEXT_PX
    lines = 1 - (-len(found.tiles) // PAIRS)
    paper = Image.new("RGB", (2 * PAIRS * wide - _GAP_PX, lines * tall), "white")
    pen = ImageDraw.Draw(paper)
    pen.font = ImageFont.truetype(Path(mpl.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", 12)
    panels: list[tuple[Pixels | None, str]]
    panels = [(found.image, f"{found.name}: image"), (found.label, "label")]
    panels += [(None, "")] * (2 * PAIRS - 2)  # where the legend goes
    for tile in found.tiles:
        panels += [(tile.labels, tile.run), (tile.errors, tile.note)]
    for place, (pixels, title) in enumerate(panels):
        x, y = place % (2 * PAIRS) * wide, place // (2 * PAIRS) * tall
        pen.text((x, y + 2), title, fill=palette.INK)
        if pixels is not None:
            paper.paste(Image.fromarray(pixels), (x, y + _TEXT_PX))
    for place, (name, colour) in enumerate((*found.legend, ("wrong", palette.ERROR))):
        x, y = 2 * wide + 170 * (place % 2), _TEXT_PX + 19 * (place // 2)
        pen.rectangle((x, y + 2, x + 11, y + 13), fill=colour, outline=palette.GREY)
        pen.text((x + 18, y), name, fill=palette.INK)
    return png(paper.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE))


def png(image: Image.Image) -> bytes:
    """PNG bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _shrunk(pixels: Pixels, how: Image.Resampling = Image.Resampling.NEAREST) -> Pixels:
    """At most SIDE_PX long; never enlarged."""
    height, width = pixels.shape[:2]
    factor = min(1.0, SIDE_PX / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(Image.fromarray(pixels).resize(size, how))
