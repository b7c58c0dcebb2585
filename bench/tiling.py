"""Patch geometry: the grid, stitching of scores, and cropping and merging of feature maps.

All coordinates are integers that depend only on sizes, so that they are the same on fake tensors.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.nn import functional as F

from bench.errors import UserError

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

    def shows(self, row: int, column: int) -> bool:
        """Whether a pixel is inside."""
        return 0 <= row - self.top < self.height and 0 <= column - self.left < self.width


class MapStore(Protocol):
    """Stores one tensor per group of patches, by the group's first box."""

    def __setitem__(self, first: Box, kept: Tensor, /) -> None: ...

    def pop(self, first: Box, /) -> Tensor:
        """The stored tensor; read once."""
        ...


class Large(Protocol):
    """An image on the disk or on a GPU that is read by windows; strategies accept it in place of a
    tensor (`bench.streaming` and `bench.windows` implement it).

    Labels become final window by window and are written beside the image, so that no memory holds
    scores of its size."""

    shape: tuple[int, int, int]
    """(3, H, W), of uint8."""
    device: torch.device
    """Where scores are summed: the host, or the GPU that holds the image."""

    def cut(self, boxes: Sequence[Box]) -> Tensor:
        """As `cut`."""
        ...

    def shrink(self, size: Size) -> Tensor:
        """As `shrink_image`, exactly."""
        ...

    def sum_up(
        self,
        boxes: Sequence[Box],
        sub_batch: int,
        score: Callable[[Sequence[Box]], Tensor],
        dtype: torch.dtype | None,
    ) -> None:
        """As `scores_by_patches`, in the same order; writes the labels of the sums."""
        ...

    def enlarge(self, scores: Tensor, mode: str) -> None:
        """Enlarge scores (K, h, w) of the whole image and write their labels."""
        ...

    def map_store(self) -> MapStore:
        """A store beside the image."""
        ...

    def pending_groups(
        self, groups: Iterable[Sequence[Box]], merger: "Merger"
    ) -> Iterator[Sequence[Box]]:
        """As `pending_groups`."""
        ...


Image = Tensor | Large
"""(3, H, W) uint8 in host memory, or on the disk or a GPU."""


def starts(side_px: int, patch_px: int, overlap_px: int) -> list[int]:
    """Start positions of patches along one side, as in the official GLNet code.

    As few patches as cover the side with an overlap of at least `overlap_px`, evenly spaced; the
    last one ends at the end of the side. A side that fits into one patch gives one start (Differs
    from the official code: it divides by zero there).

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


def grid(height_px: int, width_px: int, patch_px: int | Size, overlap_px: int) -> list[Box]:
    """Boxes that cover the image, row by row; an image smaller than the patch gives smaller boxes.

    Args:
        patch_px: side of a square, or (height, width).
    """
    patch = patch_px if isinstance(patch_px, tuple) else (patch_px, patch_px)
    height, width = min(height_px, patch[0]), min(width_px, patch[1])
    return [
        Box(top, left, height, width)
        for top in starts(height_px, patch[0], overlap_px)
        for left in starts(width_px, patch[1], overlap_px)
    ]


def cover(size: Size, block: Size) -> Iterator[Box]:
    """Boxes that tile an area of `size`, row by row; the last of each row and column may be smaller."""
    for top in range(0, size[0], block[0]):
        for left in range(0, size[1], block[1]):
            yield Box(top, left, min(block[0], size[0] - top), min(block[1], size[1] - left))


def scaled(box: Box, image: Size, map: Size, loose: bool = False) -> Box:
    """The box of an image of size (H, W), scaled to a map of size (h, w) of the whole image.

    Corner and size are rounded separately, as in the official code, so that all boxes of a grid
    have one size on the map. Differs from the official code: a box has at least one cell, and is
    moved back if rounding puts it outside the map.

    Args:
        loose: crop a box that leaves the map, as the official code does.
    """

    def along(start: int, length: int, side: int, cells: int) -> tuple[int, int]:
        first, size = round(start / side * cells), round(length / side * cells)
        if loose:
            return first, max(min(size, cells - first), 0)
        size = min(max(size, 1), cells)
        return min(first, cells - size), size

    top, height = along(box.top, box.height, image[0], map[0])
    left, width = along(box.left, box.width, image[1], map[1])
    return Box(top, left, height, width)


def groups(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """`items` in groups of at most `size`; the size of a sub-batch changes memory and time, not the
    result."""
    for first in range(0, len(items), size):
        yield items[first : first + size]


def cut(image: Image, boxes: Sequence[Box]) -> Tensor:
    """The boxes of an image (C, H, W) as one batch (P, C, h, w)."""
    if not isinstance(image, Tensor):
        return image.cut(boxes)
    return torch.stack([box.of(image) for box in boxes])


def map_store(image: Image) -> MapStore:
    """A store for maps of an image's patches: in host memory, or beside the image."""
    if not isinstance(image, Tensor):
        return image.map_store()
    kept: dict[Box, Tensor] = {}
    return kept


def pending_groups(
    image: Image, groups: Iterable[Sequence[Box]], merger: "Merger"
) -> Iterator[Sequence[Box]]:
    """The groups of patches whose maps are not merged yet.

    For an image in memory these are all groups. For an image on the disk, an earlier process may
    have been killed: then the remaining groups, with the merger restored to its last state."""
    return iter(groups) if isinstance(image, Tensor) else image.pending_groups(groups, merger)


def scores_by_patches(
    image: Image,
    boxes: Sequence[Box],
    sub_batch: int,
    score: Callable[[Sequence[Box]], Tensor],
    dtype: torch.dtype | None = None,
    blend: "Blend" = "mean",
) -> Tensor:
    """Score the patches of an image group by group, and sum the scores where they overlap.

    The sum replaces the mean, because dividing a pixel's scores by the number of its patches does
    not change their arg max. The sums are on the host, like the image: at 5000 x 5000 px they take
    more than 600 MiB.

    Args:
        image: (3, H, W), on the host.
        boxes: patches that cover it.
        score: a group of P boxes -> (P, K, h, w) of any resolution on any device; resized to the
            boxes by nearest neighbour after the transfer, as in the official code.
        dtype: of the sums; None: that of the scores, at least float32.
        blend: what a patch's scores count where patches overlap; they are weighted on the host.

    Returns:
        (K, H, W) on the host; an empty tensor for an image by windows, whose labels are written.
    """

    def counted(group: Sequence[Box]) -> Tensor:
        scores = score(group)
        if blend == "mean":
            return scores
        size = (group[0].height, group[0].width)
        return weighted(resize(scores.to(image.device), size, "nearest"), blend)

    sums = torch.empty(0)
    if not isinstance(image, Tensor):
        image.sum_up(boxes, sub_batch, counted, dtype)
        return sums
    for group in groups(boxes, sub_batch):
        scores = counted(group).to(image.device)
        if not sums.numel():
            sums = torch.zeros(
                scores.shape[1],
                *image.shape[-2:],
                dtype=dtype_of_sums(scores, dtype),
                device=image.device,
            )
        for one, box in zip(scores, group, strict=True):
            box.of(sums).add_(resize(one[None], (box.height, box.width), "nearest")[0])
    return sums


def dtype_of_sums(scores: Tensor, wanted: torch.dtype | None = None) -> torch.dtype:
    """Of sums of scores: the wanted one, else that of the scores, but at least float32."""
    return wanted or torch.promote_types(scores.dtype, torch.float32)


Blend = Literal["mean", "gaussian"]
"""How scores of overlapping patches are averaged: with equal weights, or with `importance`."""


def importance(height_px: int, width_px: int, device: torch.device | None = None) -> Tensor:
    """Weight of each pixel of a patch (H, W): a Gaussian around the patch's centre with a standard
    deviation of 1/8 of its side, as in nnU-Net (Isensee et al., Nature Methods 2021) and MONAI. It is
    at most 1, and 1e-7 in the corners: never 0, so that every pixel has a weighted mean."""
    along = [
        torch.exp(-(((torch.arange(side, device=device) - (side - 1) / 2) * 8 / side) ** 2) / 2)
        for side in (height_px, width_px)
    ]
    return along[0][:, None] * along[1]


def weighted(scores: Tensor, blend: Blend) -> Tensor:
    """Scores of patches (P, K, H, W), times what they count where patches overlap; `mean` changes
    nothing. Weighted scores are at least float32, which holds the smallest weight."""
    if blend == "mean":
        return scores
    return scores * importance(scores.shape[-2], scores.shape[-1], scores.device)


def weights_of(boxes: Iterable[Box], image: Size, blend: Blend) -> Tensor:
    """Sum of the weights at each pixel of an image of size (H, W): what divides a sum of scores."""
    total = torch.zeros(image)
    for box in boxes:
        box.of(total).add_(weighted(torch.ones(1, 1, box.height, box.width), blend)[0, 0])
    return total


class Turning(NamedTuple):
    """One of the eight symmetries of a rectangle: mirrored or not, and quarter turns."""

    mirrored: bool
    quarters: int


def turnings(flips: bool, turns: bool) -> list[Turning]:
    """The transformations of a test-time augmentation; the first one is the identity."""
    mirrors = (False, True) if flips else (False,)
    return [
        Turning(mirrored, quarters) for mirrored in mirrors for quarters in range(4 if turns else 1)
    ]


def turn(map: Tensor, turning: Turning) -> Tensor:
    """A map (C, H, W), mirrored and rotated."""
    map = map.flip(-1) if turning.mirrored else map
    return torch.rot90(map, turning.quarters, (-2, -1)) if turning.quarters else map


def turn_back(map: Tensor, turning: Turning) -> Tensor:
    """The inverse of `turn`."""
    map = torch.rot90(map, -turning.quarters, (-2, -1)) if turning.quarters else map
    return map.flip(-1) if turning.mirrored else map


def summed_over_turnings(
    image: Tensor, test_time: Sequence[str], score: Callable[[Tensor], Tensor]
) -> Tensor:
    """Test-time augmentation: the sum of the scores (K, h, w) of the mirrored and rotated versions of
    an image (3, H, W), transformed back.

    Args:
        test_time: `flips`, `turns`, both or neither.
    """
    total = torch.empty(0)
    for turning in turnings("flips" in test_time, "turns" in test_time):
        one = turn_back(score(turn(image, turning)), turning)
        total = total.add_(one) if total.numel() else one
        del one
    return total


def bounding_box(mask: Tensor) -> Box | None:
    """The smallest box around the true pixels of a mask (H, W); None if there are none.

    For a fake tensor, which has no values, it is the whole mask.
    """
    height, width = mask.shape
    if isinstance(mask, FakeTensor):
        return Box(0, 0, height, width)
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    if not len(rows):
        return None
    top, left = int(rows[0]), int(columns[0])
    return Box(top, left, int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left)


def relaxed(box: Box, image: Size, margin: float, least: Size) -> Box:
    """The box, enlarged by `margin` of its side at each end, at least of size `least` (height,
    width), inside the image."""

    def along(first: int, length: int, side: int, least: int) -> tuple[int, int]:
        size = min(max(length + 2 * round(margin * length), least), side)
        return min(max(first - (size - length) // 2, 0), side - size), size

    top, height = along(box.top, box.height, image[0], least[0])
    left, width = along(box.left, box.width, image[1], least[1])
    return Box(top, left, height, width)


def labels_of(scores: Tensor) -> Tensor:
    """The arg max over classes, the first of equal ones: (K, H, W) -> (H, W) uint8."""
    # Class by class reads memory in order; argmax over the first axis takes 8 times as long.
    best = scores[0].clone()
    labels = torch.zeros_like(best, dtype=torch.uint8)
    for number in range(1, len(scores)):
        labels.masked_fill_(scores[number] > best, number)
        torch.maximum(best, scores[number], out=best)
    return labels


def resize(map: Tensor, size: Size, mode: str = "bilinear") -> Tensor:
    """A map (N, C, H, W), resized; `bilinear` has no aligned corners and no antialiasing."""
    if map.shape[-2:] == size:
        return map
    return F.interpolate(map, size, mode=mode, align_corners=False if mode == "bilinear" else None)


def shrink_image(image: Image, size: Size) -> Tensor:
    """An image (3, H, W) uint8, resized bilinearly with antialiasing in 8 bit, like Pillow; on the
    host, since torch has no kernel in 8 bit for a GPU."""
    if not isinstance(image, Tensor):
        return image.shrink(size)
    return F.interpolate(image[None].cpu(), size, mode="bilinear", antialias=True)[0]


def shrink_label(label: Tensor, size: Size) -> Tensor:
    """Labels (..., H, W), resized by nearest neighbour like Pillow: the label at the centre of each
    new pixel."""

    def under(cells: int, side: int) -> Tensor:
        # Centres are accumulated in float64 as in Pillow, so that a centre between two labels is
        # rounded to the same side.
        step = side / cells
        return torch.tensor([int(c) for c in accumulate([step / 2] + [step] * (cells - 1))])

    rows, columns = (under(*pair) for pair in zip(size, label.shape[-2:], strict=True))
    return label[..., rows[:, None], columns]


def crop(map: Tensor, boxes: Sequence[Box], image: Size, loose: bool = False) -> Tensor:
    """The crops of a map (1, C, h, w) of the whole image at P boxes: (P, C, h', w').

    Args:
        boxes: in pixels of the image, whose size (H, W) is `image`.
        loose: see `scaled`.

    Raises:
        UserError: with `loose`, crops have different sizes; the official code crashes there.
    """
    places = [scaled(box, image, (map.shape[-2], map.shape[-1]), loose) for box in boxes]
    if len({(place.height, place.width) for place in places}) > 1 or 0 in places[0][2:]:
        raise _crash("crops of a map come out unequal", image)
    return torch.cat([place.of(map) for place in places])


def crop_all(
    maps: Iterable[Iterable[Tensor]], boxes: Sequence[Box], image: Size, loose: bool = False
) -> list[list[Tensor]]:
    """`crop` of every map of every kind."""
    return [[crop(map, boxes, image, loose) for map in kind] for kind in maps]


class Merger:
    """Merges maps of patches into maps of the whole image; overlaps are averaged.

    GLNet, section 3.2. Differs from the official code: it divides by a coverage template resized to
    the map, which differs from the rounded grid at patch seams, and leaves 0 in cells that no patch
    covers after rounding. Here every cell is divided by the number of patches added to it, and a
    cell without patches gets the mean of its neighbours.
    """

    def __init__(
        self,
        like: Sequence[Tensor],
        image: Size,
        official: Sequence[Box] = (),
        device: torch.device | None = None,
    ) -> None:
        """
        Args:
            like: one map of the whole image per level, which gives the size of the merged map.
            image: (H, W) of the image.
            official: all boxes that will be added, to divide as the official code does.
            device: of the merged maps; None: that of `like`.
        """
        self.image = image
        self.official = official
        self.counts = [map.new_zeros(1, 1, *map.shape[-2:], device=device) for map in like]
        self.places: list[list[Box]] = [[] for _ in like]
        self.sums: list[list[Tensor]] = []
        self.keep: Callable[[list[list[Tensor]], bool], None] | None = None
        """Gets the resized maps and `loose`, for another process that adds them."""

    def sizes(self, box: Box) -> list[Size]:
        """Size per level to which a patch's maps are resized before they are added."""
        levels = [(count.shape[-2], count.shape[-1]) for count in self.counts]
        return [scaled(box, self.image, level)[2:] for level in levels]

    def add(
        self, maps: Iterable[Sequence[Tensor]], boxes: Sequence[Box], loose: bool = False
    ) -> None:
        """Add the maps (P, C, h, w) of P patches: for each kind of map one per level."""
        kinds = list(maps)
        resized = self.sizes(boxes[0])
        if self.keep:
            pairs = [zip(kind, resized, strict=True) for kind in kinds]
            self.keep([[resize(map, size) for map, size in kind] for kind in pairs], loose)
            return
        if not self.sums:
            self.sums = [
                [
                    map.new_zeros(1, map.shape[1], *count.shape[-2:], device=count.device)
                    for map, count in zip(kind, self.counts, strict=True)
                ]
                for kind in kinds
            ]
        for level, count in enumerate(self.counts):
            size = (count.shape[-2], count.shape[-1])
            places = [scaled(box, self.image, size, loose) for box in boxes]
            if any(place[2:] != resized[level] for place in places):
                raise _crash("a merged map meets a crop of another size", self.image)
            self.places[level] += places
            for place in places:
                place.of(count).add_(1)
            for total, kind in zip(self.sums, kinds, strict=True):
                small = resize(kind[level], resized[level]).to(count.device)
                for place, one in zip(places, small, strict=True):
                    place.of(total[level]).add_(one)

    def mean(self) -> list[list[Tensor]]:
        """The merged maps, each (1, C, h, w). Overwrites the sums."""
        if self.official:
            template = coverage(self.official, self.image)
            self.counts = [
                resize(template, (count.shape[-2], count.shape[-1])).to(count)
                for count in self.counts
            ]
        for kind in self.sums:
            for level, (total, count) in enumerate(zip(kind, self.counts, strict=True)):
                if self.official:
                    total.div_(count)
                elif not _has_hole(self.places[level], total):
                    total.div_(count.clamp(min=1))
                else:
                    around = F.avg_pool2d(count, 3, 1, 1).clamp(min=1 / 9)
                    around = F.avg_pool2d(total, 3, 1, 1) / around
                    total.copy_(torch.where(count > 0, total / count, around))
        return self.sums


def coverage(boxes: Iterable[Box], image: Size) -> Tensor:
    """Number of boxes that cover each pixel of an image of size (H, W): (1, 1, H, W)."""
    template = torch.zeros(1, 1, *image)
    for box in boxes:
        box.of(template).add_(1)
    return template


def _has_hole(places: Sequence[Box], map: Tensor) -> bool:
    # Boxes form a grid, so that a hole is an entire row or column.
    rows = {row for place in places for row in range(place.top, place.top + place.height)}
    columns = {cell for place in places for cell in range(place.left, place.left + place.width)}
    return len(rows) < map.shape[-2] or len(columns) < map.shape[-1]


def _crash(what: str, image: Size) -> UserError:
    return UserError(
        f"The official code crashes on an image of {image[0]} x {image[1]} px with these patches "
        f"({what}): take `loose-crops` out of the spec's `official`, or change patch_px."
    )
