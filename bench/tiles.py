"""Patch geometry: the grid, stitching scores, cropping maps for patches and merging theirs.

All geometry is plain integers that depend on sizes alone, so that it is the same on fake tensors.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

T = TypeVar("T")
Size = tuple[int, int]
"""(height, width) in pixels."""


class Box(NamedTuple):
    """A rectangle of an image or a map, in its pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, map: Tensor) -> Tensor:
        """The view of `map` (..., H, W) inside the box."""
        return map[..., self.top : self.top + self.height, self.left : self.left + self.width]


def starts(side_px: int, patch_px: int, overlap_px: int) -> list[int]:
    """Where patches begin along one side, as the official GLNet code lays them.

    The fewest patches that cover the side, then one more until neighbours share at least
    `overlap_px`; evenly spaced, the last one flush with the end. A side that fits into one patch
    gives one start (Differs from the official code: it divides by zero there).

    Raises:
        ValueError: the overlap is not smaller than the patch (the official code never returns).
    """
    if not 0 <= overlap_px < patch_px:
        raise ValueError(
            f"patches of {patch_px} px cannot overlap by {overlap_px} px: 0 <= overlap < patch"
        )
    if side_px <= patch_px:
        return [0]
    rest = side_px - patch_px
    count = max(-(-side_px // patch_px), 1 + -(-rest // (patch_px - overlap_px)))
    return [round(i * rest / (count - 1)) for i in range(count)]


def grid(height_px: int, width_px: int, patch_px: int, overlap_px: int) -> list[Box]:
    """Boxes that cover the image, row by row; sides of the image smaller than the patch give
    smaller boxes."""
    height, width = min(height_px, patch_px), min(width_px, patch_px)
    return [
        Box(top, left, height, width)
        for top in starts(height_px, patch_px, overlap_px)
        for left in starts(width_px, patch_px, overlap_px)
    ]


def scaled(box: Box, image: Size, map: Size) -> Box:
    """The box of an image of size (H, W) on a map of size (h, w) of the whole image.

    Corner and size are rounded apart, as in the official code, so that all boxes of a grid have one
    size on the map. Differs from the official code: a box has at least one cell and is moved where
    rounding would push it off the map."""

    def along(start: int, length: int, side: int, cells: int) -> tuple[int, int]:
        size = min(max(round(length / side * cells), 1), cells)
        return min(round(start / side * cells), cells - size), size

    top, height = along(box.top, box.height, image[0], map[0])
    left, width = along(box.left, box.width, image[1], map[1])
    return Box(top, left, height, width)


def groups(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """`items` in runs of at most `size`: a sub-batch of patches changes memory and time, not the
    result."""
    for first in range(0, len(items), size):
        yield items[first : first + size]


def cut(image: Tensor, boxes: Sequence[Box]) -> Tensor:
    """The boxes of an image (C, H, W) as one batch (P, C, h, w)."""
    return torch.stack([box.of(image) for box in boxes])


def labels_by_patches(
    image: Tensor,
    boxes: Sequence[Box],
    sub_batch: int,
    score: Callable[[Sequence[Box]], Tensor],
) -> Tensor:
    """Score the patches of an image group by group, sum the scores where they overlap, and take the
    best class.

    The sum stands for the average: a pixel's arg max does not change when all its scores are
    divided by the number of patches that saw it. The canvas lies beside the image, on the host: at
    5000 x 5000 px it alone is more than 600 MiB.

    Args:
        image: (3, H, W), on the host.
        boxes: patches that cover it.
        score: a group of P boxes -> (P, K, h, w) of any resolution and on any device; enlarged to
            the boxes by nearest after the transfer, as in the official code.

    Returns:
        (H, W) uint8 on the host.
    """
    canvas = torch.empty(0)
    for group in groups(boxes, sub_batch):
        scores = score(group).to(image.device)
        if not canvas.numel():
            canvas = torch.zeros(scores.shape[1], *image.shape[-2:], device=image.device)
        for one, box in zip(scores, group, strict=True):
            box.of(canvas).add_(resize(one[None], (box.height, box.width), "nearest")[0])
    return labels_of(canvas)


def labels_of(scores: Tensor) -> Tensor:
    """The best class of each pixel: (K, H, W) -> (H, W) uint8."""
    return scores.argmax(0).to(torch.uint8)


def resize(map: Tensor, size: Size, mode: str = "bilinear") -> Tensor:
    """A map (N, C, H, W) at another size; `bilinear` is without aligned corners and without
    antialiasing."""
    if map.shape[-2:] == size:
        return map
    return F.interpolate(map, size, mode=mode, align_corners=False if mode == "bilinear" else None)


def shrink_image(image: Tensor, size: Size) -> Tensor:
    """An image (3, H, W) uint8 at another size, bilinear with antialiasing in 8 bit, like
    Pillow's."""
    return F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]


def shrink_label(label: Tensor, size: Size) -> Tensor:
    """Labels (..., H, W) uint8 at another size: the label under each new pixel's centre, like
    Pillow's nearest."""
    flat = label.reshape(-1, 1, *label.shape[-2:])
    return F.interpolate(flat, size, mode="nearest-exact").reshape(*label.shape[:-2], *size)


def crop(map: Tensor, boxes: Sequence[Box], image: Size) -> Tensor:
    """What a map (1, C, h, w) of the whole image shows in each box: (P, C, h', w').

    Args:
        boxes: in pixels of the image, whose size (H, W) is `image`.
    """
    size = (map.shape[-2], map.shape[-1])
    return torch.cat([scaled(box, image, size).of(map) for box in boxes])


def crop_all(
    maps: Iterable[Iterable[Tensor]], boxes: Sequence[Box], image: Size
) -> list[list[Tensor]]:
    """`crop` of every map of every kind."""
    return [[crop(map, boxes, image) for map in kind] for kind in maps]


class Merger:
    """Adds up patches' maps on maps of the whole image, and averages where patches overlap.

    GLNet, section 3.2. Differs from the official code: it divides by a coverage template resized to
    the map, which disagrees with the rounded grid at patch seams; here every cell is divided by the
    number of patches that were added to it.
    """

    def __init__(self, like: Sequence[Tensor], image: Size) -> None:
        """One map of the whole image a level, whose sizes the merged ones take; `image`: its (H,
        W)."""
        self.image = image
        self.counts = [map.new_zeros(1, 1, *map.shape[-2:]) for map in like]
        self.sums: list[list[Tensor]] = []

    def add(self, maps: Iterable[Sequence[Tensor]], boxes: Sequence[Box]) -> None:
        """Add the maps (P, C, h, w) of P patches: kinds of maps, each with all the levels."""
        kinds = list(maps)
        if not self.sums:
            self.sums = [
                [
                    map.new_zeros(1, map.shape[1], *count.shape[-2:])
                    for map, count in zip(kind, self.counts, strict=True)
                ]
                for kind in kinds
            ]
        for level, count in enumerate(self.counts):
            places = [scaled(box, self.image, (count.shape[-2], count.shape[-1])) for box in boxes]
            for place in places:
                place.of(count).add_(1)
            for total, kind in zip(self.sums, kinds, strict=True):
                small = resize(kind[level], (places[0].height, places[0].width))
                for place, one in zip(places, small, strict=True):
                    place.of(total[level]).add_(one)

    def mean(self) -> list[list[Tensor]]:
        """The merged maps, each (1, C, h, w); a cell that no patch covers is 0. The sums are used
        up."""
        for kind in self.sums:
            for total, count in zip(kind, self.counts, strict=True):
                total.div_(count.clamp(min=1))
        return self.sums
