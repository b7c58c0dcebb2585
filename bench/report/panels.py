"""Pictures of a test scene: image, label, and each run's labels beside what it got wrong."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from PIL import Image

from bench.errors import Refusal
from bench.report import style
from bench.report.gather import Entry
from bench.report.table import scene_miou
from data.dataset import UNLABELLED, Dataset, read_pixels

SIDE_PX = 360
"""Longest side of a tile; twice what the page shows, for sharp screens and print."""
PAIRS = 3
"""Runs side by side on the sheet, each with its labels and its errors."""
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
        Refusal: a prediction does not fit its label.
    """
    image_tensor, label_tensor = dataset.read(name)
    photo, truth = image_tensor.permute(1, 2, 0).numpy(), label_tensor.numpy()
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
    lines = -(-len(found.tiles) // PAIRS)
    height, width = found.label.shape[:2]
    side = 1.7  # inches of a tile's width
    with mpl.rc_context(style.RC):
        tall = side * height / width
        figure = Figure(figsize=(2 * PAIRS * side, (1 + lines) * (tall + 0.2)))
        gaps = {"left": 0, "right": 1, "bottom": 0, "top": 1, "wspace": 0.04, "hspace": 0.2 / tall}
        panels = figure.subplots(1 + lines, 2 * PAIRS, squeeze=False, gridspec_kw=gaps)
        for axes in panels.flat:
            axes.set_axis_off()
        _show(panels[0][0], found.image, f"{found.name}: image")
        _show(panels[0][1], found.label, "label")
        keys = [Patch(facecolor=c, edgecolor=style.GREY, lw=0.5, label=n) for n, c in found.legend]
        keys.append(Patch(facecolor=style.ERROR, label="wrong"))
        panels[0][2].legend(handles=keys, loc="center left", fontsize=8, ncols=2)
        for place, tile in enumerate(found.tiles):
            pair = panels[1 + place // PAIRS][2 * (place % PAIRS) :]
            if tile.labels is None or tile.errors is None:
                _show(pair[0], np.full_like(found.label, 244), tile.run)
                pair[0].text(
                    0.5,
                    0.5,
                    tile.note,
                    transform=pair[0].transAxes,
                    fontsize=7,
                    ha="center",
                    va="center",
                    color=style.GREY,
                )
                continue
            _show(pair[0], tile.labels, tile.run)
            _show(pair[1], tile.errors, tile.note)
        buffer = io.BytesIO()
        figure.savefig(
            buffer,
            format="png",
            dpi=150,
            bbox_inches="tight",
            pad_inches=0.08,
            metadata={"Software": None},
        )
    picture = Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    return png(picture)


def png(picture: Image.Image) -> bytes:
    """PNG bytes."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def prediction(entry: Entry, name: str, truth: Pixels) -> Pixels | None:
    """What a run says of a test scene, (H, W) as its label; None where it has no picture.

    Raises:
        Refusal: the picture is damaged, or does not fit the label.
    """
    path = entry.pictures / f"{name}.png"
    if scene_miou(entry, name) is None or not path.is_file():
        return None
    predicted = read_pixels(path, "L")
    if predicted.shape != truth.shape:
        raise Refusal(f"{path} does not fit the label of {name}: run `dvc repro`.")
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
    shown[truth != predicted] = [round(255 * part) for part in to_rgb(style.ERROR)]
    shown[truth == UNLABELLED] = _NEITHER
    return shown


def _show(axes: Axes, pixels: Pixels, title: str) -> None:
    axes.imshow(pixels, interpolation="nearest")
    axes.set_title(title, fontsize=7, pad=2.5)
