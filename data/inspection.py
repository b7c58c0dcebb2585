"""Statistics of the images of a data set, and warnings about them."""

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from bench.files import escape_formula
from data.dataset import UNLABELLED, About, Pair

Facts = Mapping[str, Mapping[str, Any]]
"""The result of `facts` by image id."""


def facts(pair: Pair, about: About) -> dict[str, Any]:
    """Split, size, pixels by class, mean colour, and the SHA-256 of the image's pixels."""
    counts = np.bincount(pair.label.ravel(), minlength=UNLABELLED + 1)
    digest = hashlib.sha256(str(pair.image.shape).encode())
    digest.update(np.ascontiguousarray(pair.image).data)
    return {
        "split": pair.split,
        "height_px": pair.label.shape[0],
        "width_px": pair.label.shape[1],
        "mean_colour": pair.image.reshape(-1, 3).mean(0).tolist(),
        "pixels": {
            **{name: int(counts[index]) for index, name in enumerate(about.classes)},
            "unlabelled": int(counts[UNLABELLED]),
        },
        "pixels_sha256": digest.hexdigest(),
    }


def class_pixels(checked: Facts) -> dict[str, dict[str, int]]:
    """Pixels of each class, by split."""
    found: dict[str, Counter[str]] = {}
    for check in checked.values():
        found.setdefault(check["split"], Counter()).update(check["pixels"])
    return {split: dict(pixels) for split, pixels in found.items()}


def summary(checked: Facts) -> str:
    """CSV with pixels and share of each class, by split."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["split", "class", "pixels", "share"])
    for split, pixels in class_pixels(checked).items():
        total = max(sum(pixels.values()), 1)
        for name, count in pixels.items():
            writer.writerow([split, escape_formula(name), count, count / total])
    return text.getvalue()


def leaks(checked: Facts) -> list[str]:
    """A sentence for each image that is in two splits, compared by decoded pixels."""
    seen: dict[str, str] = {}
    found = []
    for id, check in checked.items():
        other = seen.setdefault(check["pixels_sha256"], id)
        if checked[other]["split"] != check["split"]:
            found.append(
                f"{other} ({checked[other]['split']}) and {id} ({check['split']}) are one image."
            )
    return found


def other_warnings(about: About, checked: Facts) -> list[str]:
    """Warnings about duplicates, unlabelled images and absent classes; each a sentence."""
    found = []
    seen: dict[tuple[str, str], str] = {}
    for id, check in checked.items():
        other = seen.setdefault((check["split"], check["pixels_sha256"]), id)
        if other != id:
            found.append(f"{other} and {id} (both {check['split']}) are one image.")
        if check["pixels"]["unlabelled"] == check["height_px"] * check["width_px"]:
            found.append(f"{id} ({check['split']}) has no labelled pixel.")
    for split, pixels in class_pixels(checked).items():
        for name, count in pixels.items():
            if not count and name != "unlabelled" and name not in about.ignored:
                found.append(f"The class {name} does not occur in {split}.")
    return found
