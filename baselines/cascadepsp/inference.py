"""How CascadePSP meets an image of any size: a base network labels it, and the mask of each class
is refined, first in the whole and then crop by crop.

As in the scene parsing recipe of the released code. Differs from the official code: image and masks
of full resolution live on the host, and the device sees crops alone."""

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.nn import functional as F

from baselines.cascadepsp.model import STRIDE, CascadePSP
from baselines.cascadepsp.spec import Spec
from bench.method import Strategy
from bench.tiling import Box, bounding_box, labels_of, relaxed, resize, shrink_image

SURE = 0.5
"""A class must be more likely than this to take a pixel."""


def base(network: CascadePSP, image: Tensor, spec: Spec) -> Tensor:
    """The base network's labels: of the image shrunk to a square, its scores enlarged on the
    host."""
    small = shrink_image(image, (spec.base_px, spec.base_px))
    scores = network.base(network.normalise(small[None])).to(image.device)
    return labels_of(resize(scores, (image.shape[-2], image.shape[-1]))[0])


def cascade(network: CascadePSP, image: Tensor, spec: Spec) -> Tensor:
    """The base network's labels refined: a pixel takes the class that is refined to the highest
    probability above one half, and keeps its label where there is none.

    How much is to be done depends on the labels. On fake tensors, which have none, every class is
    everywhere and no crop is left out: predicted memory is the most that it can come to.
    """
    labels = base(network, image, spec)
    size = (image.shape[-2], image.shape[-1])
    best = torch.full(size, SURE, device=image.device)
    result = labels.clone()
    for number in range(network.classes):
        mask = labels == number
        found = bounding_box(mask)
        if found is None:
            continue
        box = relaxed(found, size, spec.box_growth / 2, (STRIDE, STRIDE))
        likely = refined(network, box.of(image), box.of(mask), spec)
        better = likely > box.of(best)
        box.of(result).masked_fill_(better, number)
        torch.maximum(box.of(best), likely, out=box.of(best))
    return result


def refined(network: CascadePSP, image: Tensor, mask: Tensor, spec: Spec) -> Tensor:
    """How likely each pixel of an image (3, H, W) is inside, by a mask (H, W): (H, W), on the host.

    The mask in the whole, at `side_px` at most; where that was shrunk, crops at the image's own
    resolution then start from what it gave. A pixel of no crop keeps the whole's answer, cut to 0
    or 1.
    """
    size = (image.shape[-2], image.shape[-1])
    seed = 2 * mask.float()[None] - 1
    shrunk = spec.side_px / max(size)
    if shrunk >= 1:
        return _seen(network, image, seed)[1]
    small = (max(round(size[0] * shrunk), 1), max(round(size[1] * shrunk), 1))
    fourth, whole = _seen(network, _area(image, small), _area(seed, small))
    whole = resize(whole[None, None], size)[0, 0]
    fourth = 2 * resize(fourth[None, None], size)[0] - 1
    inside = whole > 0.5
    seed = 2 * inside.float()[None] - 1
    sums, counts = torch.zeros_like(whole), torch.zeros_like(whole)
    for box in crops(size, spec):
        if not worth_refining(box.of(inside), spec.least_share):
            continue
        likely = _seen(network, box.of(image), box.of(seed), box.of(fourth))[1]
        kept = inner(box, size, spec.margin_px)
        here = kept._replace(top=kept.top - box.top, left=kept.left - box.left)
        kept.of(sums).add_(here.of(likely))
        kept.of(counts).add_(1)
    return torch.where(counts > 0, sums / counts.clamp(min=1), inside.float())


def crops(size: tuple[int, int], spec: Spec) -> list[Box]:
    """Where a mask of `size` (H, W) px is refined at its own resolution: row by row, the last ones
    flush with its edges."""

    def starts(side: int) -> list[int]:
        last = max(side - spec.side_px, 0)
        return [*range(0, last, spec.step_px), last]

    height, width = (min(side, spec.side_px) for side in size)
    return [Box(top, left, height, width) for top in starts(size[0]) for left in starts(size[1])]


def inner(box: Box, size: tuple[int, int], margin: int) -> Box:
    """A crop without its margins, but for those that lie on the edges of a mask of `size`."""

    def along(first: int, length: int, side: int) -> tuple[int, int]:
        begin = first + (margin if first > 0 else 0)
        end = first + length - (margin if first + length < side else 0)
        return begin, max(end - begin, 0)

    top, height = along(box.top, box.height, size[0])
    left, width = along(box.left, box.width, size[1])
    return Box(top, left, height, width)


def worth_refining(inside: Tensor, least_share: float) -> bool:
    """Whether a crop (H, W) has enough of both sides of an edge; a fake tensor, which holds no
    values, has."""
    if isinstance(inside, FakeTensor):
        return True
    return least_share <= float(inside.float().mean()) <= 1 - least_share


def _seen(
    network: CascadePSP, image: Tensor, seed: Tensor, slot: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What the passes over an image (3, h, w) say of a seed (1, h, w) in -1..1, at 1/4 and in full:
    probabilities (h, w) on the host.

    Args:
        slot: what is known better than the seed, (1, h, w) in -1..1: the first pass is left out.
    """
    height, width = image.shape[-2:]
    margins = (0, -width % STRIDE, 0, -height % STRIDE)
    device = network.mean.device
    x = F.pad(network.normalise(image[None]), margins)

    def padded(mask: Tensor) -> Tensor:
        return F.pad(mask[None].to(device), margins, value=-1)

    better = None if slot is None else (padded(slot),) * 2
    _, fourth, full = network.passes(x, padded(seed), better)[-1]
    cut = [one[0, 0, :height, :width].sigmoid().to(image.device) for one in (fourth, full)]
    return cut[0], cut[1]


def _area(map: Tensor, size: tuple[int, int]) -> Tensor:
    """A map (C, H, W) at a smaller size, each new pixel the mean of those that it covers."""
    return F.interpolate(map[None].float(), size, mode="area")[0]


STRATEGIES = {
    "base": Strategy(base, ("base",)),
    "cascade": Strategy(cascade),
}
