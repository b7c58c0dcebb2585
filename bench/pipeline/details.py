"""What a confusion matrix does not tell: precision against recall over all thresholds, how well
boundaries are met, and which sizes of object are found.

Everything is counted in pixels, so that images and seeds can be added up."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

Labels = NDArray[np.uint8]
Counts = NDArray[np.int64]

BINS = 200
LOGIT = 14.0
"""Probabilities are counted by their logit, -14 to 14: float32 holds no larger ones."""
BOUNDARY_SHARE = 0.02
"""Width of a boundary, as a share of the image's diagonal."""
DIAMETERS_PX = (8, 16, 32, 64, 128, 256)
"""Between the groups of objects by size."""
ROWS = 256
"""Of an image, whose probabilities are in memory at once."""

DEFINITIONS = {
    "scores": (
        "pixels of each class and all labelled pixels, by the class's softmax probability in "
        f"{BINS} equal steps of its logit from {-LOGIT:.0f} to {LOGIT:.0f}, over all images of the "
        "split; where patches overlap, probabilities are of their mean scores"
    ),
    "boundaries": (
        "by class: pixels in both boundaries, and in either; the boundary of a class is its part "
        f"within {BOUNDARY_SHARE:.0%} of the image's diagonal of other classes or the image's edge "
        "(Cheng et al., Boundary IoU, CVPR 2021)"
    ),
    "objects": (
        "by class and diameter of a circle of the object's area, below "
        f"{', '.join(map(str, DIAMETERS_PX))} px and above: number of true objects (8-connected), "
        "their pixels, of these predicted right; pixels of predicted objects, of these right"
    ),
}
ABOUT = {"detail_definitions": DEFINITIONS, "diameters_px": DIAMETERS_PX}
"""Of the counts in a record."""


def score_counts(scores: Tensor, coverage: Tensor | None, truth: Labels) -> Counts:
    """Labelled pixels by their softmax probability of each class.

    Args:
        scores: (K, H, W), the sums of a strategy.
        coverage: (H, W), sum of the patches' weights at each pixel; None: 1.
        truth: (H, W), 0 .. K-1 or 255 = unlabelled.

    Returns:
        (K, 2, BINS): pixels of the class, and all labelled pixels.
    """
    classes = len(scores)
    counts = np.zeros((classes, 2, BINS), np.int64)
    for top in range(0, truth.shape[0], ROWS):
        here = slice(top, top + ROWS)
        part = scores[:, here].float()
        if coverage is not None:
            part = part / coverage[here]
        logits = torch.logit(torch.softmax(part, 0), eps=1e-7)
        places = ((logits + LOGIT) * (BINS / 2 / LOGIT)).long().clamp_(0, BINS - 1).numpy()
        labelled = truth[here] < classes
        for k in range(classes):
            inside = places[k][truth[here] == k]
            counts[k, 0] += np.bincount(inside, minlength=BINS)
            counts[k, 1] += np.bincount(places[k][labelled], minlength=BINS)
    return counts


def boundary_counts(truth: Labels, prediction: Labels, classes: int) -> Counts:
    """Pixels in both boundaries of a class, and in either; unlabelled pixels are left out.

    Args:
        truth: (H, W), 0 .. K-1 or 255 = unlabelled.
        prediction: (H, W), 0 .. K-1.

    Returns:
        (K, 2).
    """
    width = max(1, round(BOUNDARY_SHARE * float(np.hypot(*truth.shape))))
    labelled = truth < classes
    counts = np.zeros((classes, 2), np.int64)
    for k in range(classes):
        true, predicted = (
            _boundary(labels == k, width) & labelled for labels in (truth, prediction)
        )
        counts[k] = (true & predicted).sum(), (true | predicted).sum()
    return counts


def _boundary(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """Pixels of a mask within `width` of its outside or the image's edge, by columns and rows."""
    places = ndimage.find_objects(mask.astype(np.uint8))
    boundary = np.zeros_like(mask)
    if places:  # nothing outside this box changes the result
        inside = mask[places[0]]
        core = ndimage.minimum_filter(inside.view(np.uint8), 2 * width + 1, mode="constant")
        boundary[places[0]] = inside & (core == 0)
    return boundary


def object_counts(truth: Labels, prediction: Labels, classes: int) -> Counts:
    """Objects of each class by their size, and how many of their pixels are right.

    Args:
        truth: (H, W), 0 .. K-1 or 255 = unlabelled.
        prediction: (H, W), 0 .. K-1.

    Returns:
        (K, len(DIAMETERS_PX) + 1, 5); the last axis as in `DEFINITIONS`.
    """
    counts = np.zeros((classes, len(DIAMETERS_PX) + 1, 5), np.int64)
    seen = np.where(truth < classes, prediction, classes)  # no class where it is unlabelled
    for k in range(classes):
        right = (truth == k) & (seen == k)
        counts[k, :, :3] = _by_size(truth == k, right)
        counts[k, :, 3:] = _by_size(seen == k, right)[:, 1:]
    return counts


def _by_size(mask: NDArray[np.bool_], right: NDArray[np.bool_]) -> Counts:
    """(groups, 3): number of objects of a mask, their pixels, and of these the right ones."""
    objects, number = ndimage.label(mask, np.ones((3, 3), int))
    pixels = np.bincount(objects.ravel(), minlength=number + 1)[1:]
    good = np.bincount(objects[right], minlength=number + 1)[1:]
    group = np.searchsorted(DIAMETERS_PX, 2 * np.sqrt(pixels / np.pi), side="right")
    groups = len(DIAMETERS_PX) + 1
    columns = [np.bincount(group, weights, groups) for weights in (None, pixels, good)]
    return np.stack(columns, 1).astype(np.int64)


class Details:
    """The counts of a split's images; those of scores are added up, the others are by scene."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.scores: Counts | None = None
        self.scenes: dict[str, dict[str, Any]] = {}

    def add(
        self,
        id: str,
        truth: Labels,
        prediction: Labels,
        scores: Tensor | None,
        coverage: Tensor | None,
    ) -> None:
        """Count one image; arguments as in `score_counts` and `object_counts`, and no scores where a
        strategy has none."""
        self.scenes[id] = {
            "boundaries": boundary_counts(truth, prediction, self.classes).tolist(),
            "objects": object_counts(truth, prediction, self.classes).tolist(),
        }
        if scores is not None:
            counts = score_counts(scores, coverage, truth)
            self.scores = counts if self.scores is None else self.scores + counts

    @property
    def values(self) -> dict[str, Any]:
        """As a record keeps them; `DEFINITIONS` says what they are."""
        scores = {} if self.scores is None else {"scores": self.scores.tolist()}
        return {**scores, "scenes": self.scenes}
