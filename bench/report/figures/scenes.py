"""Images of test scenes: one sheet of thumbnails for slides and papers, and a page that shows the
predictions of two runs side by side, with a handle between them.

A page shows labels and errors over the image down to single pixels, and the inputs of the run's
network; assets/scene.js and OpenSeadragon show them. An image is one file, or a pyramid of tiles
where one file would be too large for a browser to decode at once: every halving down to one tile,
the smallest at level 0, as OpenSeadragon counts them, in PATH/LEVEL/COLUMN_ROW.ENDING."""

import io
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from PIL import Image, ImageColor

from bench.errors import UserError
from bench.files import write_bytes
from bench.report import style
from bench.report.evaluations import scene_ious, scene_miou
from bench.report.figures import palette
from bench.report.load_records import Entry, Inputs
from bench.report.site import Site
from data.dataset import UNLABELLED, Dataset
from data.image_file import read_numbers

if TYPE_CHECKING:  # imports torch, which must not delay the figures
    from bench.method import NetworkInput

SIDE_PX = 240
"""Longest side of a thumbnail."""
PAIRS = 3
"""Runs side by side, each with its labels and its errors."""
RIGHT, WRONG, NEITHER = range(3)
"""Pixels of an error map; neither: unlabelled, or of a class that no mean counts."""
ERROR_RGB = ImageColor.getrgb(palette.ERROR)
UNLABELLED_RGB = (70, 70, 70)
_GREYS = 24  # few levels keep the file small
_PANEL_IN, _SMALL_PT = 1.22, 4.3
_TEXTS = ("font.size", "axes.titlesize", "legend.fontsize")
WHOLE_PX = 2560
"""Longest side of an image that stays one file: DeepGlobe's 2448 px do, Inria's 5000 do not."""
TILE_PX = 1024
"""Side of a tile: few files rather than small ones, for flat colours take little room."""
Pixels = NDArray[np.uint8]
Colour = tuple[int, ...]
"""Red, green, blue, opacity, 0..255."""
_ERRORS: Sequence[Colour] = (
    (255, 255, 255, 150),  # right: the image shows through, faded
    (*ERROR_RGB, 255),
    (110, 110, 110, 215),
)


def sheet(
    dataset: Dataset, name: str, entries: Sequence[Entry]
) -> tuple[str, Callable[[], Figure]]:
    """One test scene and the predictions of all runs, shrunk, each beside its errors: the scene's mIoU
    by each run, or why there is none, and what draws it.

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
    panels: list[tuple[Pixels | None, str]]
    panels = [(small, f"{name}: image"), (colours[small_truth], "label")]
    panels += [(None, "")] * (2 * PAIRS - 2)
    notes = []
    for entry in entries:
        predicted, score = prediction(entry, name, truth), scene_miou(entry, name)
        labels = shown = None
        note = entry.status if score is None else "no prediction"
        if predicted is not None:
            numbers, note = _shrunk(predicted), f"mIoU {style.percent(score)} %"
            found = errors(small_truth, numbers, ignored)
            shown = np.where((found == WRONG)[..., None], np.array(ERROR_RGB, np.uint8), faded)
            shown[found == NEITHER] = 176
            labels = colours[numbers]
        panels += [(labels, entry.name), (shown, note)]
        notes.append(f"{entry.name} {note}")
    return ", ".join(notes) + ".", partial(_sheet, panels, legend(dataset))


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
    predicted, _ = read_numbers(path)
    if predicted.shape != truth.shape:
        raise UserError(f"{path} does not fit the label of {name}: run `dvc repro`.")
    return predicted


def png(image: Image.Image) -> bytes:
    """PNG bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _sheet(
    panels: Sequence[tuple[Pixels | None, str]], classes: Sequence[tuple[str, str]]
) -> Figure:
    """Panels in lines, each below its title, and the colours of classes and errors."""
    lines, known = -(-len(panels) // (2 * PAIRS)), (*classes, ("wrong", palette.ERROR))
    height, width = next(pixels.shape[:2] for pixels, _ in panels if pixels is not None)
    size_in = (2 * PAIRS * _PANEL_IN, lines * (_PANEL_IN * height / width + 0.15) + 0.3)
    with mpl.rc_context(palette.RC | dict.fromkeys(_TEXTS, _SMALL_PT) | {"axes.titlepad": 2}):
        drawn = Figure(figsize=size_in, layout="constrained")
        grid = drawn.subplots(lines, 2 * PAIRS, squeeze=False).ravel()
        for axes in grid:
            axes.set_axis_off()
        for axes, (pixels, title) in zip(grid, panels, strict=False):
            axes.set_title(title)
            if pixels is not None:
                axes.imshow(pixels, interpolation="nearest")
        keys = [Patch(facecolor=colour, edgecolor=palette.GREY, label=n) for n, colour in known]
        drawn.legend(handles=keys, loc="outside lower center", ncols=min(len(keys), 9))
    return drawn


def _shrunk(pixels: Pixels, how: Image.Resampling = Image.Resampling.NEAREST) -> Pixels:
    """At most SIDE_PX long; never enlarged."""
    height, width = pixels.shape[:2]
    factor = min(1.0, SIDE_PX / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(Image.fromarray(pixels).resize(size, how))


@dataclass(frozen=True)
class Page:
    """A page that was written."""

    scene: str
    target: str
    """Path below report/."""
    path: Path
    mious: Mapping[str, float | None]
    """mIoU of the scene by run, 0..1, best first; None if no class counts. Runs without a
    prediction are left out."""

    def showing(self, left: str, right: str) -> str:
        """`target` with a choice of the two menus: a run, `label` or `image`."""
        return f"{self.target}#{urlencode({'left': left, 'right': right})}"


def write_pages(site: Site, inputs: Inputs, dataset: Dataset, ids: Sequence[str]) -> list[Page]:
    """Write SUITE/scenes/ID.html and its images for each of a data set's test scenes.

    Raises:
        UserError: a prediction is damaged, or does not fit its label.
    """
    return [_write_page(site, inputs, dataset, scene, ids) for scene in ids]


def _write_page(
    site: Site, inputs: Inputs, dataset: Dataset, scene: str, scenes: Sequence[str]
) -> Page:
    image, truth = dataset.arrays(scene)
    entries = [entry for entry in inputs.entries if entry.dataset == dataset.name]
    colours = [(*rgb, 255) for rgb in (*dataset.palette, UNLABELLED_RGB)]
    ignored = [dataset.classes.index(name) for name in dataset.ignored]
    suite = inputs.suite.suite
    root = site.folder / suite / "scenes"
    shutil.rmtree(root / scene, ignore_errors=True)  # of runs that the suite no longer has

    def labels(name: str, numbers: Pixels) -> dict[str, Any]:
        last = np.uint8(len(dataset.classes))
        shown = np.where(numbers == UNLABELLED, last, numbers)
        return write_image(root, f"{scene}/{name}", shown, colours)

    def method(entry: Entry) -> dict[str, Any] | None:
        predicted = prediction(entry, scene, truth)
        if predicted is None:
            return None
        wrong = errors(truth, predicted, ignored)
        return {
            "name": entry.name,
            "miou": _known(scene_miou(entry, scene)),
            "iou": [_known(one) for one in scene_ious(entry, scene)],
            "labels": labels(entry.name, predicted),
            "errors": write_image(root, f"{scene}/{entry.name}.errors", wrong, _ERRORS),
        }

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow compresses without the GIL
        made = list(pool.map(method, entries))
    methods = [
        found | {"inputs": _inputs(entry, image, root, scene)}
        for entry, found in zip(entries, made, strict=True)
        if found
    ]
    methods.sort(key=lambda one: -math.inf if one["miou"] is None else one["miou"], reverse=True)
    target = f"{suite}/scenes/{scene}.html"
    path = site.write(
        target,
        "scene.html.j2",
        suite=suite,
        dataset=dataset,
        scene=scene,
        scenes=scenes,
        content={
            "width": truth.shape[1],
            "height": truth.shape[0],
            "image": write_image(root, f"{scene}/image", image.transpose(1, 2, 0)),
            "label": labels("label", truth),
            "methods": methods,
        },
        runs=[(one["name"], style.percent(one["miou"])) for one in methods],
        missing=[(e.name, e.status) for e, found in zip(entries, made, strict=True) if not found],
        classes=_classes(dataset, truth),
        wrong=palette.ERROR,
    )
    return Page(scene, target, path, {one["name"]: one["miou"] for one in methods})


def write_image(
    root: Path, name: str, pixels: Pixels, colours: Sequence[Colour] | None = None
) -> dict[str, Any]:
    """Write an image below `root`; returns where scene.js finds it.

    `path` is the address of the file without its ending, or of the folder of tiles, from `root`;
    with one of the `levels` it is a single file.

    Args:
        name: path without an ending.
        pixels: (H, W) numbers of `colours`, written as a paletted PNG; or without them
            (H, W, 3) RGB, written as a JPEG whose colours are as sharp as its brightness.
    """
    ending = "png" if colours else "jpg"
    height, width = pixels.shape[:2]
    found = {"path": quote(name), "ending": ending, "width": width, "height": height}
    if max(height, width) <= WHOLE_PX:
        write_bytes(root / f"{name}.{ending}", encoded(pixels, colours))
        return found | {"levels": 1, "tile_px": max(height, width)}
    levels = pyramid(pixels)
    for level, image in enumerate(levels):
        for column, row, tile in tiles(image):
            path = root / name / str(level) / f"{column}_{row}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            # Not flushed one by one: there are thousands, and the page that shows them comes last.
            path.write_bytes(encoded(tile, colours))
    return found | {"levels": len(levels), "tile_px": TILE_PX}


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


def _known(share: float | None) -> float | None:
    """JSON has no NaN."""
    return None if share is None or math.isnan(share) else share


def _classes(dataset: Dataset, truth: Pixels) -> list[dict[str, str]]:
    """The legend: name, colour and share of the scene."""
    counts = np.bincount(truth.ravel(), minlength=256)
    shares = [*counts[: len(dataset.classes)], counts[UNLABELLED]]
    return [
        {"name": name, "colour": colour, "share": f"{100 * share / truth.size:.1f}"}
        for (name, colour), share in zip(legend(dataset), shares, strict=True)
    ]


def _inputs(entry: Entry, image: Pixels, root: Path, scene: str) -> list[dict[str, Any]]:
    """What the run's network receives; of a shrunk image its very pixels."""
    from bench.method import network_inputs

    height, width = image.shape[-2:]
    return [
        {
            "what": _in_words(one),
            "boxes": [list(box) for box in one.boxes],
            "context": one.context,
            "given": _shrunk_input(one, image, root, scene),
        }
        for one in network_inputs(entry.run, entry.model, height, width)
    ]


def _in_words(given: "NetworkInput") -> str:
    box, (rows, columns) = given.boxes[0], given.input_px
    size = f"{columns} × {rows} px"
    if (box.height, box.width) != (rows, columns):
        size = (
            f"{box.width} × {box.height} px shrunk to {size} (one pixel for "
            f"{box.width / columns:.1f} × {box.height / rows:.1f})"
        )
    count = "the" if given.context or len(given.boxes) == 1 else len(given.boxes)
    return f"{count} {given.what} of {size}"


def _shrunk_input(given: "NetworkInput", image: Pixels, root: Path, scene: str) -> str | None:
    """Address of the shrunk image that the network receives, None if it is not shrunk.

    A PNG, so that every pixel is exact.
    """
    if len(given.boxes) > 1 or given.input_px == image.shape[-2:]:
        return None
    name = f"{scene}/given-{given.input_px[1]}x{given.input_px[0]}.png"
    if not (root / name).exists():
        import torch

        from bench.tiling import shrink_image

        small = shrink_image(torch.from_numpy(image), given.input_px).permute(1, 2, 0).numpy()
        write_bytes(root / name, png(Image.fromarray(small)))
    return quote(name)
