"""Direct labels that cover neither a point nor each other: greedy, the most important one first."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

from bench.report.style import GREY, INK

# Degrees, right of the point first.
_ANGLES = (0, 180, 90, 270, 45, 135, 315, 225, 22, 158, 202, 338, 67, 113, 247, 293)
_RADII_PT = (9, 15, 24, 36, 52, 70, 90)
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
    """Draw each label at the free place nearest to its point, with a leader line where that is far.

    The figure must have its final layout: `Figure.draw_without_rendering` after all else.

    Args:
        labels: the first one chooses first.
        points: markers that no label may cover, in data coordinates.
        soft: places that a label had better not cover, for instance along a line.
    """
    scale = axes.figure.dpi / 72
    half = _MARKER_PT * scale
    markers = [_box(*_pixel(axes, x, y), half, half) for x, y in points]
    around = _Around(axes.get_window_extent(), markers, [], [_pixel(axes, *at) for at in soft])
    for label in labels:
        x, y = _pixel(axes, label.x, label.y)
        width, height = _extent(axes, label)
        offsets = [
            (radius, *_offset(radius * scale, angle, width, height))
            for radius in _RADII_PT
            for angle in _ANGLES
        ]
        least = math.inf
        for radius, right, up in offsets:
            if radius >= least:  # a place costs at least its distance: none further off is cheaper
                break
            box = _box(x + right, y + up, width / 2, height / 2)
            cost = around.cost((x, y), box, scale) + radius
            if cost < least:
                least, dx, dy = cost, right, up
        box = _box(x + dx, y + dy, width / 2, height / 2)
        own = _box(x, y, half, half).padded(9 * scale)
        _draw(axes, label, dx / scale, dy / scale, far=not own.overlaps(box))
        around.texts.append(box)


@dataclass(frozen=True)
class _Around:
    """What a new label has to keep clear of, in pixels."""

    inside: Bbox
    markers: list[Bbox]
    texts: list[Bbox]
    """Grows with every label that is placed."""
    line: list[tuple[float, float]]

    def cost(self, point: tuple[float, float], box: Bbox, scale: float) -> float:
        """What speaks against a text in `box` that belongs to `point`; `scale`: pixels a point."""
        x, y = point
        centre_x, centre_y = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
        leader = [(x + (centre_x - x) * i / 12, y + (centre_y - y) * i / 12) for i in range(2, 13)]
        foreign = [marker for marker in self.markers if not marker.contains(x, y)]
        wide, nearby = box.padded(2 * scale), box.padded(5 * scale)
        return (
            1000 * sum(wide.overlaps(other) for other in (*self.markers, *self.texts))
            + 1000 * (not _within(wide, self.inside))
            + 30 * sum(any(b.contains(*at) for at in leader) for b in (*foreign, *self.texts))
            + 15 * sum(nearby.overlaps(other) for other in foreign)  # whose label would it be?
            + 4 * sum(wide.contains(*at) for at in self.line)
        )


def _pixel(axes: Axes, x: float, y: float) -> tuple[float, float]:
    place = axes.transData.transform((x, y))
    return float(place[0]), float(place[1])


def _box(x: float, y: float, half_width: float, half_height: float) -> Bbox:
    return Bbox.from_extents(x - half_width, y - half_height, x + half_width, y + half_height)


def _offset(radius: float, angle: float, width: float, height: float) -> tuple[float, float]:
    """From a point to the centre of a text whose edge is about `radius` away."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return (radius + width / 2) * cos, (radius + height / 2) * sin


def _within(box: Bbox, outer: Bbox) -> bool:
    return bool(
        box.x0 >= outer.x0 and box.x1 <= outer.x1 and box.y0 >= outer.y0 and box.y1 <= outer.y1
    )


def _extent(axes: Axes, label: Label) -> tuple[float, float]:
    """Width and height of a text in pixels."""
    text = axes.text(0, 0, label.text, fontsize=8, fontweight="bold" if label.bold else "normal")
    box = text.get_window_extent()
    text.remove()
    return box.width, box.height


def _draw(axes: Axes, label: Label, dx_pt: float, dy_pt: float, far: bool) -> None:
    axes.annotate(
        label.text,
        (label.x, label.y),
        (dx_pt, dy_pt),
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=8,
        fontweight="bold" if label.bold else "normal",
        color=INK,
        arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.6, "shrinkB": 5} if far else None,
        zorder=6,
    )
