"""Pages of the test scenes: what two runs say of an image, side by side under a handle.

A page shows labels and errors over the image down to single pixels, and what the run's network was
given of it. Pictures come from layers.py; assets/scene.js and OpenSeadragon show them."""

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import numpy as np
from matplotlib.colors import to_rgb
from PIL import Image

from bench import metrics
from bench.files import write_bytes
from bench.report import style
from bench.report.evaluations import scene_miou
from bench.report.figures import image_tiles, palette, thumbnails
from bench.report.figures.image_tiles import Colour, Layer, Pixels
from bench.report.load_records import Entry, Inputs
from bench.report.site import Site
from data.dataset import UNLABELLED, Dataset

if TYPE_CHECKING:  # imports torch, which is not awaited before the figures are under way
    from bench.method import NetworkInput

RIGHT, WRONG, NEITHER = range(3)
"""Pixels of an error map; neither: unlabelled, or of a class that no mean counts."""
_ERRORS: tuple[Colour, ...] = (
    (255, 255, 255, 150),  # the image shows through, faded
    (*(round(255 * part) for part in to_rgb(palette.ERROR)), 255),  # type: ignore[assignment]
    (110, 110, 110, 215),
)


@dataclass(frozen=True)
class Page:
    """A page that was written."""

    scene: str
    target: str
    """Path below report/."""
    path: Path
    mious: Mapping[str, float | None]
    """mIoU of the scene by run, 0..1, best first; None where no class counts. Runs without a
    picture are not there."""

    def showing(self, left: str, right: str) -> str:
        """`target` with a choice of the two menus: a run, `label` or `image`."""
        return f"{self.target}#{urlencode({'left': left, 'right': right})}"


def write(site: Site, inputs: Inputs, dataset: Dataset, ids: Sequence[str]) -> list[Page]:
    """Write SUITE/scenes/ID.html and its pictures for each of a data set's test scenes.

    Raises:
        UserError: a picture is damaged, or does not fit its label.
    """
    entries = [entry for entry in inputs.entries if entry.model.dataset == dataset.name]
    return [_write(site, inputs.suite.suite, dataset, entries, id, ids) for id in ids]


def errors(truth: Pixels, predicted: Pixels, ignored: Sequence[int]) -> Pixels:
    """RIGHT, WRONG or NEITHER for each pixel (H, W).

    Args:
        ignored: classes that no mean counts.
    """
    found = np.where(truth == predicted, np.uint8(RIGHT), np.uint8(WRONG))
    for number in (UNLABELLED, *ignored):
        found[truth == number] = NEITHER
    return found


def _write(
    site: Site,
    suite: str,
    dataset: Dataset,
    entries: Sequence[Entry],
    scene: str,
    scenes: Sequence[str],
) -> Page:
    image, truth = dataset.arrays(scene)
    colours = _colours(dataset)
    root = site.folder / suite / "scenes"
    shutil.rmtree(root / scene, ignore_errors=True)  # runs that the suite no longer has

    def picture(name: str, pixels: Pixels, colours: Sequence[Colour] | None = None) -> Layer:
        return image_tiles.write(root, f"{scene}/{name}", pixels, colours)

    def method(entry: Entry) -> dict[str, Any] | None:
        predicted = thumbnails.prediction(entry, scene, truth)
        if predicted is None:
            return None
        ignored = [dataset.classes.index(name) for name in dataset.ignored]
        wrong = errors(truth, predicted, ignored)
        return {
            "name": entry.name,
            "miou": _known(scene_miou(entry, scene)),
            "iou": _iou(entry, scene),
            "labels": asdict(picture(entry.name, _numbers(predicted, dataset), colours)),
            "errors": asdict(picture(f"{entry.name}.errors", wrong, _ERRORS)),
        }

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow compresses without the GIL
        made = list(pool.map(method, entries))
    methods = [
        found | {"sights": _sights(entry, image, root, scene)}
        for entry, found in zip(entries, made, strict=True)
        if found
    ]
    methods.sort(key=lambda one: -math.inf if one["miou"] is None else one["miou"], reverse=True)
    target = f"{suite}/scenes/{scene}.html"
    content = {
        "width": truth.shape[1],
        "height": truth.shape[0],
        "image": asdict(picture("image", image.transpose(1, 2, 0))),
        "label": asdict(picture("label", _numbers(truth, dataset), colours)),
        "methods": methods,
    }
    path = site.write(
        target,
        "scene.html.j2",
        suite=suite,
        dataset=dataset,
        scene=scene,
        scenes=scenes,
        content=content,
        runs=[(one["name"], style.percent(one["miou"])) for one in methods],
        missing=[(e.name, e.status) for e, found in zip(entries, made, strict=True) if not found],
        classes=_classes(dataset, truth, colours),
        wrong=palette.ERROR,
    )
    return Page(scene, target, path, {one["name"]: one["miou"] for one in methods})


def _colours(dataset: Dataset) -> list[Colour]:
    """By class, and after them of what has no label."""
    return [(*rgb, 255) for rgb in (*dataset.palette, thumbnails.UNLABELLED_RGB)]


def _numbers(labels: Pixels, dataset: Dataset) -> Pixels:
    """Labels as numbers of `_colours`."""
    return np.where(labels == UNLABELLED, np.uint8(len(dataset.classes)), labels)


def _iou(entry: Entry, scene: str) -> list[float | None]:
    """IoU of one scene by class, 0..1; None where the class does not occur or does not count."""
    values = entry.evaluation
    matrix = metrics.total([values["splits"]["test"][scene]])
    each = metrics.iou(matrix, values["classes"], values["ignored"])
    return [_known(float(one)) for one in each]


def _known(share: float | None) -> float | None:
    """JSON knows no NaN."""
    return None if share is None or math.isnan(share) else share


def _classes(dataset: Dataset, truth: Pixels, colours: Sequence[Colour]) -> list[dict[str, str]]:
    """The legend: name, colour and share of the scene."""
    counts = np.bincount(truth.ravel(), minlength=256)
    names = [*(name.replace("_", " ") for name in dataset.classes), "unlabelled"]
    shares = [*counts[: len(dataset.classes)], counts[UNLABELLED]]
    return [
        {
            "name": name,
            "colour": "#{:02x}{:02x}{:02x}".format(*colour[:3]),
            "share": f"{100 * share / truth.size:.1f}",
        }
        for name, colour, share in zip(names, colours, shares, strict=True)
    ]


def _sights(entry: Entry, image: Pixels, root: Path, scene: str) -> list[dict[str, Any]]:
    """What the run's network was given; of a shrunk image the very pixels."""
    from bench.method import network_inputs

    height, width = image.shape[-2:]
    return [
        {
            "what": _in_words(sight, height, width),
            "boxes": [list(box) for box in sight.boxes],
            "context": sight.context,
            "given": _shrunk(sight, image, root, scene),
        }
        for sight in network_inputs(entry.run, entry.model, height, width)
    ]


def _in_words(sight: "NetworkInput", height: int, width: int) -> str:
    box = sight.boxes[0]
    rows, columns = sight.input_px
    size = f"{columns} × {rows} px"
    if (box.height, box.width) == (rows, columns):
        how = f"of {size}"
    else:
        how = (
            f"of {box.width} × {box.height} px shrunk to {size} (one pixel for "
            f"{box.width / columns:.1f} × {box.height / rows:.1f})"
        )
    count = "the" if sight.context or len(sight.boxes) == 1 else len(sight.boxes)
    return f"{count} {sight.what} {how}"


def _shrunk(sight: "NetworkInput", image: Pixels, root: Path, scene: str) -> str | None:
    """Address of the shrunk image that the network is given, or nothing where it is not shrunk.

    A PNG, so that every pixel is what it was for the network.
    """
    size = (image.shape[-2], image.shape[-1])
    if len(sight.boxes) > 1 or sight.input_px == size:
        return None
    name = f"{scene}/given-{sight.input_px[1]}x{sight.input_px[0]}.png"
    if not (root / name).exists():
        import torch

        from bench.tiling import shrink_image

        small = shrink_image(torch.from_numpy(image), sight.input_px).permute(1, 2, 0).numpy()
        write_bytes(root / name, thumbnails.png(Image.fromarray(small)))
    return quote(name)
