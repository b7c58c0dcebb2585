"""Confusion matrices and the metrics computed from them, each with its definition."""

from collections.abc import Collection, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

UNLABELLED = 255
Matrix = NDArray[np.int64]
Unlabelled = Literal["left-out", "false-positives"]
Absent = Literal["left-out", "zero"]

DEFINITIONS = {
    "miou": (
        "mean over classes of intersection / union, from one confusion matrix over all images of "
        "the split; unlabelled pixels and those of ignored classes are left out, and so is a class "
        "that neither truth nor prediction has"
    ),
    "miou_official": (
        "as GLNet's released code counts: unlabelled and ignored pixels stay in as false positives "
        "of whatever is predicted there, a class that does not occur counts as 0, ignored classes "
        "are left out of the mean alone"
    ),
    "accuracy": "share of labelled pixels whose class is right",
}


def confusion(truth: NDArray[np.uint8], prediction: NDArray[np.uint8], classes: int) -> Matrix:
    """Pixels by true and predicted class.

    Args:
        truth: labels of any shape, 0 .. K-1 or 255 = unlabelled.
        prediction: of the same shape, 0 .. K-1.

    Returns:
        (K + 1, K): rows are the truth, the last one the unlabelled pixels.

    Raises:
        ValueError: a predicted label is not a class; it would be counted in another row.
    """
    if prediction.size and prediction.max() >= classes:
        raise ValueError(f"predicted class {prediction.max()}, but there are {classes}")
    row = np.where(truth == UNLABELLED, classes, truth).astype(np.int64)
    counts = np.bincount(
        row.ravel() * classes + prediction.ravel(), minlength=(classes + 1) * classes
    )
    return counts.reshape(classes + 1, classes)


def total(matrices: Collection[Any]) -> Matrix:
    """The sum of the scenes' matrices, each (K + 1, K)."""
    summed: Matrix = np.sum([np.asarray(matrix, np.int64) for matrix in matrices], axis=0)
    return summed


def iou(
    matrix: Matrix,
    classes: Sequence[str],
    ignored: Collection[str] = (),
    unlabelled: Unlabelled = "left-out",
) -> NDArray[np.float64]:
    """Intersection over union of each class, 0..1; NaN for ignored classes and those that do not
    occur.

    A counted pixel that is predicted as an ignored class is a false negative of its true class.

    Args:
        matrix: (..., K + 1, K), one or many.
        unlabelled: whether pixels whose true label is unlabelled or ignored are left out or count
            as `false-positives` of whatever is predicted there.

    Returns:
        (..., K).
    """
    keep = np.array([name not in ignored for name in classes])
    labelled = matrix[..., :-1, :]
    predicted = matrix
    if unlabelled == "left-out":
        labelled = predicted = np.where(keep[:, None], labelled, 0)
    inside = np.diagonal(labelled, axis1=-2, axis2=-1).astype(np.float64)
    union = predicted.sum(-2) + labelled.sum(-1) - inside
    return _shares(inside, union, keep & (union > 0))


def miou(
    matrix: Matrix,
    classes: Sequence[str],
    ignored: Collection[str] = (),
    leave_out: Collection[str] = (),
    unlabelled: Unlabelled = "left-out",
    absent: Absent = "left-out",
) -> float:
    """Mean intersection over union, 0..1 (NaN if no class counts), by one of its definitions.

    Args:
        ignored: classes that are treated as unlabelled.
        leave_out: classes that only the mean leaves out.
        unlabelled: whether pixels that are unlabelled or of an ignored class count as
            `false-positives` of whatever is predicted there.
        absent: whether a class that neither truth nor prediction has counts as `zero`.
    """
    return float(mious(matrix, classes, ignored, leave_out, unlabelled, absent))


def mious(
    matrices: Matrix,
    classes: Sequence[str],
    ignored: Collection[str] = (),
    leave_out: Collection[str] = (),
    unlabelled: Unlabelled = "left-out",
    absent: Absent = "left-out",
) -> NDArray[np.float64]:
    """`miou` of many matrices (..., K + 1, K) at once -> (...)."""
    each = iou(matrices, classes, ignored, unlabelled)
    chosen = each[..., [name not in ignored and name not in leave_out for name in classes]]
    if absent == "zero":
        chosen = np.nan_to_num(chosen)
    known = ~np.isnan(chosen)
    number = known.sum(-1)
    return _shares(np.where(known, chosen, 0.0).sum(-1), number, number > 0)


def miou_official(matrix: Matrix, classes: Sequence[str], ignored: Collection[str] = ()) -> float:
    """The mean that GLNet's released code prints, 0..1; see DEFINITIONS."""
    return miou(matrix, classes, ignored, unlabelled="false-positives", absent="zero")


def describe(
    leave_out: Collection[str] = (),
    unlabelled: Unlabelled = "left-out",
    absent: Absent = "left-out",
) -> str:
    """The definition of `miou` with these arguments, as text."""
    return (
        "mean over classes of intersection / union, from one confusion matrix over all images of "
        f"the split; left out of the mean: {', '.join(leave_out) or 'no class'}; pixels that are "
        "unlabelled or of ignored classes "
        + ("are left out" if unlabelled == "left-out" else "count as false positives")
        + "; a class that neither truth nor prediction has "
        + ("is left out" if absent == "left-out" else "counts as 0")
    )


def accuracy(matrix: Matrix) -> float:
    """Share of labelled pixels that are predicted correctly, 0..1."""
    labelled = matrix[:-1].sum()
    return float(np.trace(matrix[:-1]) / labelled) if labelled else float("nan")


def average_precision(counts: NDArray[np.int64]) -> float:
    """Area under the curve of precision against recall, 0..1; NaN for a class without pixels.

    The sum over all thresholds of precision times the gain in recall.

    Args:
        counts: (2, N), the pixels of a class and all pixels, by the probability that they were
            given, in N rising steps.
    """
    found, predicted = np.cumsum(counts[:, ::-1], axis=1)
    if not found[-1]:
        return float("nan")
    precision = found / np.maximum(predicted, 1)
    return float((precision * counts[0, ::-1]).sum() / found[-1])


def _shares(
    part: NDArray[np.float64], whole: NDArray[Any], known: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """`part / whole`; NaN where it is not known."""
    shares: NDArray[np.float64] = np.full(part.shape, np.nan)
    np.divide(part, whole, out=shares, where=known)
    return shares
