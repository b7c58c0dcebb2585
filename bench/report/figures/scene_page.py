"""Pages of the test scenes: the predictions of two runs side by side, with a handle between them.

A page shows labels and errors over the image down to single pixels, and the inputs of the run's
network. `image_tiles.py` writes the images; assets/scene.js and OpenSeadragon show them."""

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
from PIL import Image

from bench import metrics
from bench.files import write_bytes
from bench.report import style
from bench.report.evaluations import scene_miou
from bench.report.figures import image_tiles, palette, thumbnails
from bench.report.figures.image_tiles import Colour, Pixels
from bench.report.load_records import Entry, Inputs
from bench.report.site import Site
from data.dataset import UNLABELLED, Dataset

if TYPE_CHECKING:  # imports torch, which must not delay the figures
    from bench.method import NetworkInput

_ERRORS: Sequence[Colour] = (
    (255, 255, 255, 150),  # right: the image shows through, faded
    (*thumbnails.ERROR_RGB, 255),  # type: ignore[assignment]
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
    """mIoU of the scene by run, 0..1, best first; None if no class counts. Runs without a
    prediction are left out."""

    def showing(self, left: str, right: str) -> str:
        """`target` with a choice of the two menus: a run, `label` or `image`."""
        return f"{self.target}#{urlencode({'left': left, 'right': right})}"


def write(site: Site, inputs: Inputs, dataset: Dataset, ids: Sequence[str]) -> list[Page]:
    """Write SUITE/scenes/ID.html and its images for each of a data set's test scenes.

    Raises:
        UserError: a prediction is damaged, or does not fit its label.
    """
    entries = [entry for entry in inputs.entries if entry.model.dataset == dataset.name]
    return [_write(site, inputs.suite.suite, dataset, entries, id, ids) for id in ids]


def _write(
    site: Site,
    suite: str,
    dataset: Dataset,
    entries: Sequence[Entry],
    scene: str,
    scenes: Sequence[str],
) -> Page:
    image, truth = dataset.arrays(scene)
    colours: list[Colour] = [(*rgb, 255) for rgb in (*dataset.palette, thumbnails.UNLABELLED_RGB)]
    ignored = [dataset.classes.index(name) for name in dataset.ignored]
    root = site.folder / suite / "scenes"
    shutil.rmtree(root / scene, ignore_errors=True)  # of runs that the suite no longer has

    def layer(name: str, pixels: Pixels, colours: Sequence[Colour] | None = None) -> dict[str, Any]:
        return asdict(image_tiles.write(root, f"{scene}/{name}", pixels, colours))

    def labels(name: str, numbers: Pixels) -> dict[str, Any]:
        last = np.uint8(len(dataset.classes))
        return layer(name, np.where(numbers == UNLABELLED, last, numbers), colours)

    def method(entry: Entry) -> dict[str, Any] | None:
        predicted = thumbnails.prediction(entry, scene, truth)
        if predicted is None:
            return None
        wrong = thumbnails.errors(truth, predicted, ignored)
        values = entry.evaluation
        matrix = metrics.total([values["splits"]["test"][scene]])
        iou = metrics.iou(matrix, values["classes"], values["ignored"])
        return {
            "name": entry.name,
            "miou": _known(scene_miou(entry, scene)),
            "iou": [_known(float(one)) for one in iou],
            "labels": labels(entry.name, predicted),
            "errors": layer(f"{entry.name}.errors", wrong, _ERRORS),
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
            "image": layer("image", image.transpose(1, 2, 0)),
            "label": labels("label", truth),
            "methods": methods,
        },
        runs=[(one["name"], style.percent(one["miou"])) for one in methods],
        missing=[(e.name, e.status) for e, found in zip(entries, made, strict=True) if not found],
        classes=_classes(dataset, truth),
        wrong=palette.ERROR,
    )
    return Page(scene, target, path, {one["name"]: one["miou"] for one in methods})


def _known(share: float | None) -> float | None:
    """JSON has no NaN."""
    return None if share is None or math.isnan(share) else share


def _classes(dataset: Dataset, truth: Pixels) -> list[dict[str, str]]:
    """The legend: name, colour and share of the scene."""
    counts = np.bincount(truth.ravel(), minlength=256)
    shares = [*counts[: len(dataset.classes)], counts[UNLABELLED]]
    return [
        {"name": name, "colour": colour, "share": f"{100 * share / truth.size:.1f}"}
        for (name, colour), share in zip(thumbnails.legend(dataset), shares, strict=True)
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
            "given": _shrunk(one, image, root, scene),
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


def _shrunk(given: "NetworkInput", image: Pixels, root: Path, scene: str) -> str | None:
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
        write_bytes(root / name, thumbnails.png(Image.fromarray(small)))
    return quote(name)
