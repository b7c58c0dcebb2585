"""Labels that cover neither a point nor each other: greedy, the most important one first."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from bench.report.figures.palette import GREY, INK

Boxes = NDArray[np.float64]
"""(N, 4): left, bottom, right, top in pixels."""
# Degrees; the right of the point is preferred.
_ANGLES = (0, 180, 90, 270, 45, 135, 315, 225, 22, 158, 202, 338, 67, 113, 247, 293)
_RADII_PT = (9, 15, 24, 36, 52, 70, 90, 115, 145)
_MARKER_PT = 6.0


@dataclass(frozen=True)
class Label:
    """A text that belongs to a point, in data coordinates."""

    x: float
    y: float
    text: str
    bold: bool = False


def place(
    axes: Axes,
    labels: Sequence[Label],
    points: Sequence[tuple[float, float]],
    soft: Sequence[tuple[float, float]] = (),
) -> None:
    """Draw each label at the free place nearest to its point, with a leader line if that is far.

    The figure must have its final layout: call `Figure.draw_without_rendering` first.

    Args:
        labels: the first one chooses first.
        points: markers that no label may cover, in data coordinates.
        soft: places that labels should avoid, for instance along a line.
    """
    scale = axes.figure.dpi / 72  # pixels a point
    markers = _boxes(_pixels(axes, points), np.full(2, _MARKER_PT * scale))
    texts: Boxes = np.empty((0, 4))
    avoided = np.tile(_pixels(axes, soft), 2)
    angles = np.radians(np.tile(_ANGLES, len(_RADII_PT)))
    radii = np.repeat(_RADII_PT, len(_ANGLES)).astype(float)
    directions = np.stack([np.cos(angles), np.sin(angles)], 1)  # (K, 2)
    for label in labels:
        at = _pixels(axes, [(label.x, label.y)])[0]
        half = _half_size(axes, label)
        offsets = (radii[:, None] * scale + half) * directions
        boxes = _boxes(at + offsets, half)
        foreign = markers[~_overlap(_boxes(at[None], np.zeros(2)), markers)[0]]
        # Leader lines as 11 places between the point and the middle of the text.
        steps = at + offsets[:, None] * (np.arange(2, 13)[:, None] / 12)  # (K, 11, 2)
        crossed = [_overlap(np.tile(step, 2), np.r_[foreign, texts]) for step in steps]
        cost = (
            radii
            + 1000 * _overlap(boxes, np.r_[markers, texts], 2 * scale).sum(1)
            + 1000 * _outside(boxes, axes, 2 * scale)
            + 30 * np.array([hits.any(0).sum() for hits in crossed])
            + 15 * _overlap(boxes, foreign, 5 * scale).sum(1)  # whose label would it be?
            + 4 * _overlap(boxes, avoided, 2 * scale).sum(1)
        )
        best = int(cost.argmin())
        own = _boxes(at[None], np.full(2, (_MARKER_PT + 9) * scale))
        far = not _overlap(boxes[best, None], own).any()
        _annotate(axes, label, tuple(offsets[best] / scale), leader=far)
        texts = np.r_[texts, boxes[best, None]]


def _pixels(axes: Axes, points: Sequence[tuple[float, float]]) -> NDArray[np.float64]:
    return np.asarray(axes.transData.transform(np.reshape(points, (-1, 2))), np.float64)


def _boxes(centres: NDArray[np.float64], half: NDArray[np.float64]) -> Boxes:
    return np.concatenate([centres - half, centres + half], 1)


def _overlap(a: Boxes, b: Boxes, pad: float = 0.0) -> NDArray[np.bool_]:
    """Whether box i of `a`, enlarged by `pad`, meets box j of `b`: (len(a), len(b))."""
    a = a[:, None] + pad * np.array([-1, -1, 1, 1])
    apart = (a[..., :2] > b[:, 2:]) | (a[..., 2:] < b[:, :2])
    return np.asarray(~apart.any(-1))


def _outside(boxes: Boxes, axes: Axes, pad: float) -> NDArray[np.bool_]:
    inner = axes.get_window_extent().padded(-pad).extents
    return np.asarray(((boxes[:, :2] < inner[:2]) | (boxes[:, 2:] > inner[2:])).any(1))


def _half_size(axes: Axes, label: Label) -> NDArray[np.float64]:
    text = axes.text(0, 0, label.text, **_font(label))
    box = text.get_window_extent()
    text.remove()
    return np.array([box.width, box.height]) / 2


def _font(label: Label) -> dict[str, Any]:
    return {"fontsize": 8, "fontweight": "bold" if label.bold else "normal"}


def _annotate(axes: Axes, label: Label, offset_pt: tuple[float, ...], leader: bool) -> None:
    axes.annotate(
        label.text,
        (label.x, label.y),
        (offset_pt[0], offset_pt[1]),
        textcoords="offset points",
        ha="center",
        va="center",
        color=INK,
        bbox={"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 0.5},
        arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.6, "shrinkB": 5} if leader else None,
        zorder=6,
        **_font(label),
    )
