"""Counts beyond the confusion matrix: for precision-recall curves, boundary IoU, and recall and
precision by object size.

Everything is counted in pixels, so that counts of images and seeds can be added."""

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
"""Probabilities are binned by their logit from -14 to 14, the range of float32."""
BOUNDARY_SHARE = 0.02
"""Width of a boundary as a share of the image's diagonal."""
DIAMETERS_PX = (8, 16, 32, 64, 128, 256)
"""Limits between the groups of objects by size."""
ROWS = 256
"""Rows of an image whose probabilities are in memory at once."""

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
"""Description of the counts in a record."""


def score_counts(scores: Tensor, coverage: Tensor | None, truth: Labels) -> Counts:
    """Histograms of labelled pixels by their softmax probability of each class.

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
        rows = slice(top, top + ROWS)
        part = scores[:, rows].float()
        if coverage is not None:
            part = part / coverage[rows]
        logits = torch.logit(torch.softmax(part, 0), eps=1e-7)
        bins = ((logits + LOGIT) * (BINS / 2 / LOGIT)).long().clamp_(0, BINS - 1).numpy()
        labelled = truth[rows] < classes
        for k in range(classes):
            inside = bins[k][truth[rows] == k]
            counts[k, 0] += np.bincount(inside, minlength=BINS)
            counts[k, 1] += np.bincount(bins[k][labelled], minlength=BINS)
    return counts


def boundary_counts(truth: Labels, prediction: Labels, classes: int) -> Counts:
    """Intersection and union of the true and the predicted boundary of each class, in pixels;
    unlabelled pixels are left out.

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
    """Pixels of a mask within `width` (Chebyshev distance) of its outside or of the image's edge."""
    boxes = ndimage.find_objects(mask.astype(np.uint8))
    boundary = np.zeros_like(mask)
    if boxes:  # pixels outside the bounding box do not change the result
        inside = mask[boxes[0]]
        core = ndimage.minimum_filter(inside.view(np.uint8), 2 * width + 1, mode="constant")
        boundary[boxes[0]] = inside & (core == 0)
    return boundary


def object_counts(truth: Labels, prediction: Labels, classes: int) -> Counts:
    """Objects of each class by size, and how many of their pixels are correct.

    Args:
        truth: (H, W), 0 .. K-1 or 255 = unlabelled.
        prediction: (H, W), 0 .. K-1.

    Returns:
        (K, len(DIAMETERS_PX) + 1, 5); the last axis as in `DEFINITIONS`.
    """
    counts = np.zeros((classes, len(DIAMETERS_PX) + 1, 5), np.int64)
    labelled = np.where(truth < classes, prediction, classes)  # no class where unlabelled
    for k in range(classes):
        correct = (truth == k) & (labelled == k)
        counts[k, :, :3] = _by_size(truth == k, correct)
        counts[k, :, 3:] = _by_size(labelled == k, correct)[:, 1:]
    return counts


def _by_size(mask: NDArray[np.bool_], correct: NDArray[np.bool_]) -> Counts:
    """(groups, 3): number of objects of a mask, their pixels, and the correct ones of these."""
    objects, number = ndimage.label(mask, np.ones((3, 3), int))
    pixels = np.bincount(objects.ravel(), minlength=number + 1)[1:]
    hits = np.bincount(objects[correct], minlength=number + 1)[1:]
    group = np.searchsorted(DIAMETERS_PX, 2 * np.sqrt(pixels / np.pi), side="right")
    groups = len(DIAMETERS_PX) + 1
    columns = [np.bincount(group, weights, groups) for weights in (None, pixels, hits)]
    return np.stack(columns, 1).astype(np.int64)


class Details:
    """The counts of a split's images: those of scores are summed, the others are kept by scene."""

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
        """Add one image; arguments as in `score_counts` and `object_counts`. `scores` is None for a
        strategy without scores."""
        self.scenes[id] = {
            "boundaries": boundary_counts(truth, prediction, self.classes).tolist(),
            "objects": object_counts(truth, prediction, self.classes).tolist(),
        }
        if scores is not None:
            counts = score_counts(scores, coverage, truth)
            self.scores = counts if self.scores is None else self.scores + counts

    @property
    def values(self) -> dict[str, Any]:
        """The counts in the format of a record, described in `DEFINITIONS`."""
        scores = {} if self.scores is None else {"scores": self.scores.tolist()}
        return {**scores, "scenes": self.scenes}
