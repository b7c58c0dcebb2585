"""CascadePSP's inference: a base network labels the image, and the mask of each class is refined,
first as a whole and then crop by crop.

As in the scene parsing recipe of the released code. Differs from the official code: the image and
masks of full resolution stay on the host, and only crops are on the device."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.nn import functional as F

from baselines.cascadepsp.components import box_of, masks_of
from baselines.cascadepsp.model import STRIDE, CascadePSP
from baselines.cascadepsp.spec import Spec
from bench.method import NetworkInput, Strategy
from bench.tiling import Box, labels_of, resize, shrink_image

LEAST_PROBABILITY = 0.5
"""A class must be more likely than this to replace a pixel's label."""
DOUBT = 0.51
"""Factor of a `doubtful` class's probabilities."""
LEVELS = 255


def base(network: CascadePSP, image: Tensor, spec: Spec) -> Tensor:
    """The base network's labels: the image is shrunk to a square, the scores are upsampled on the
    host."""
    small = shrink_image(image, (spec.base_px, spec.base_px))
    scores = network.base(network.normalise(small[None])).to(image.device)
    return labels_of(resize(scores, (image.shape[-2], image.shape[-1]))[0])


def cascade(network: CascadePSP, image: Tensor, spec: Spec) -> Tensor:
    """The base network's labels, refined: a pixel gets the class with the highest refined
    probability above one half, and keeps its label if there is none.

    The work depends on the labels. On fake tensors, which hold no labels, every class covers the
    image and no crop is skipped: predicted memory is an upper bound.
    """
    labels = base(network, image, spec)

    def parts() -> Iterator[tuple[int, Box, Tensor]]:
        for number in range(network.classes):
            for mask in masks_of(labels == number, spec):
                box = box_of(mask, spec)
                if box is not None:
                    yield number, box, refined(network, box.of(image), box.of(mask), spec)

    return merged(labels, parts(), spec)


def merged(labels: Tensor, parts: Iterable[tuple[int, Box, Tensor]], spec: Spec) -> Tensor:
    """Labels (H, W) uint8 that take what is more likely: of equal ones the first.

    Args:
        parts: a class, a box of the image, and the probabilities (h, w) of the class there.
    """
    best = torch.full_like(labels, LEAST_PROBABILITY, dtype=torch.float32)
    result = labels.clone()
    for number, box, likely in parts:
        if spec.quirk("grey-levels"):  # saved as an image of 8 bits, cut off
            likely = (LEVELS * likely).floor() / LEVELS
        if number in spec.doubtful:
            likely = DOUBT * likely
        better = likely > box.of(best)
        box.of(result).masked_fill_(better, number)
        torch.maximum(box.of(best), likely, out=box.of(best))
    return result


def refined(network: CascadePSP, image: Tensor, mask: Tensor, spec: Spec) -> Tensor:
    """Probability of each pixel of an image (3, H, W) to be inside a mask (H, W): (H, W), on the
    host.

    The whole mask is refined at `side_px` at most, and crops at the image's own resolution start
    from the result. A pixel outside all crops keeps the result, rounded to 0 or 1.
    """
    size = (image.shape[-2], image.shape[-1])
    given = 2 * mask.float()[None] - 1
    target = max(min(max(size), spec.side_px), spec.enlarged_px)
    ratio = target / max(size)
    fourth, whole = _probabilities(
        network,
        _resized(image, ratio, "bicubic", spec),
        _resized(given, ratio, "bilinear", spec),
        None,
        spec,
    )
    if not spec.by_crops:
        if ratio > 1:
            return F.interpolate(whole[None, None], size, mode="area")[0, 0]
        aligned = spec.quirk("aligned-corners")  # as the package has it: corners to corners
        full = F.interpolate(whole[None, None], size, mode="bilinear", align_corners=aligned)
        return full[0, 0]
    whole = resize(whole[None, None], size)[0, 0]
    fourth = 2 * resize(fourth[None, None], size)[0] - 1
    inside = whole > 0.5
    seed = 2 * inside.float()[None] - 1
    sums, counts = torch.zeros_like(whole), torch.zeros_like(whole)
    for box in crops(size, spec):
        if not worth_refining(box.of(inside), spec.least_share):
            continue
        parts = (box.of(image), box.of(seed), box.of(fourth))
        likely = _probabilities(network, *parts, spec)[1]
        kept = inner(box, size, spec.margin_px)
        here = kept._replace(top=kept.top - box.top, left=kept.left - box.left)
        kept.of(sums).add_(here.of(likely))
        kept.of(counts).add_(1)
    return torch.where(counts > 0, sums / counts.clamp(min=1), inside.float())


def crops(size: tuple[int, int], spec: Spec) -> list[Box]:
    """Crops of a mask of `size` (H, W) px at its own resolution: column by column, the last ones
    flush with its edges."""

    def starts(side: int) -> list[int]:
        last = max(side - spec.side_px, 0)
        return [*range(0, last, spec.step_px), last]

    height, width = (min(side, spec.side_px) for side in size)
    return [Box(top, left, height, width) for left in starts(size[1]) for top in starts(size[0])]


def inner(box: Box, size: tuple[int, int], margin: int) -> Box:
    """A crop without its margins, except those at the edges of a mask of `size`."""

    def along(first: int, length: int, side: int) -> tuple[int, int]:
        begin = first + (margin if first > 0 else 0)
        end = first + length - (margin if first + length < side else 0)
        return begin, max(end - begin, 0)

    top, height = along(box.top, box.height, size[0])
    left, width = along(box.left, box.width, size[1])
    return Box(top, left, height, width)


def worth_refining(inside: Tensor, least_share: float) -> bool:
    """Whether a crop (H, W) has enough foreground and background; true of fake tensors, which hold no
    values."""
    if isinstance(inside, FakeTensor):
        return True
    return least_share <= float(inside.float().mean()) <= 1 - least_share


def _probabilities(
    network: CascadePSP, image: Tensor, seed: Tensor, slot: Tensor | None, spec: Spec
) -> tuple[Tensor, Tensor]:
    """Probabilities (h, w) at 1/4 and at full resolution, on the host, from the passes over an image
    (3, h, w) with a seed mask (1, h, w) in -1..1.

    Args:
        slot: a better mask than the seed, (1, h, w) in -1..1: replaces the first pass.
    """
    height, width = image.shape[-2:]
    margins = (0, -width % STRIDE, 0, -height % STRIDE)
    if spec.quirk("both-sides-padded") and any(margins):  # a side that fits, too
        margins = (0, STRIDE - width % STRIDE, 0, STRIDE - height % STRIDE)
    device = network.mean.device
    x = F.pad(network.normalise(image[None]), margins)

    def padded(mask: Tensor) -> Tensor:
        return F.pad(mask[None].to(device), margins, value=-1)

    better = None if slot is None else (padded(slot),) * 2
    _, fourth, full = network.passes(x, padded(seed), better)[-1]
    cut = [one[0, 0, :height, :width].sigmoid().to(image.device) for one in (fourth, full)]
    return cut[0], cut[1]


def _resized(map: Tensor, ratio: float, enlarge: str, spec: Spec) -> Tensor:
    """A map (C, H, W) at a multiple of its size: enlarged as `enlarge` says, or shrunk so that each
    new pixel is the mean of those that it covers."""
    if ratio == 1:
        return map
    mode = enlarge if ratio > 1 else "area"
    corners = None if mode == "area" else False
    given = map[None].float()
    if spec.quirk("floored-sides"):  # by which a longer side of 1129 px becomes 899
        return F.interpolate(given, scale_factor=ratio, mode=mode, align_corners=corners)[0]
    size = [max(round(side * ratio), 1) for side in map.shape[-2:]]
    return F.interpolate(given, size, mode=mode, align_corners=corners)[0]


def _inputs(spec: Spec, height_px: int, width_px: int) -> list[NetworkInput]:
    """The whole image, shrunk, for the base network; the refiner's inputs depend on its labels."""
    size = (spec.base_px, spec.base_px)
    return [NetworkInput.whole(height_px, width_px, size, "whole image (base network)")]


STRATEGIES = {
    "base": Strategy(base, ("base",), inputs=_inputs),
    "cascade": Strategy(cascade, inputs=_inputs),
}
