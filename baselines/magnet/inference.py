"""MagNet's inference strategies: once on the whole image, then on patches at growing scales.

The map of probabilities is on the device, at the scale's size, beside a second one to which patches
are written: these two and the refinement at full resolution dominate MagNet's memory."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from baselines.magnet.model import MagNet
from baselines.magnet.patches import align, boxes_of, places, starts_of
from baselines.magnet.spec import Spec
from bench.method import NetworkInput, Strategy
from bench.tiling import Box, Size, groups, labels_of, resize, scaled


def resize_image(image: Tensor, size: Size) -> Tensor:
    """An image (3, H, W) uint8 at another size: bilinear without antialiasing."""
    return resize(image[None], size)[0]


def highest(scores: Tensor, count: int) -> Tensor:
    """Where the highest of scores (H, W) are: (H, W) bool; ties fall as torch has them."""
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    chosen.view(-1)[scores.flatten().topk(count, sorted=False).indices] = True
    return chosen


@dataclass(frozen=True)
class Ways:
    """Functions that a parity check replaces, and its observer."""

    resize: Callable[[Tensor, Size], Tensor] = resize_image
    pick: Callable[[Tensor, int], Tensor] = highest
    see: Callable[[str, Tensor], None] = lambda name, value: None
    """Called with every intermediate map; must copy what it stores."""


@dataclass(frozen=True)
class Plan:
    """How many patches of a later scale are computed, and how many pixels replaced."""

    patches: int | None
    """The most uncertain ones; None: all."""
    points: float
    """A share, or above 1 a number, of pixels."""

    def count(self, size: Size, boxes: int, chosen: int) -> int:
        """Pixels that are replaced in a map of size (H, W)."""
        pixels = size[0] * size[1]
        if self.points <= 1:
            return int(pixels * self.points * chosen / boxes)
        return min(int(self.points), int(pixels * chosen / boxes))


def progress(
    network: MagNet, image: Tensor, spec: Spec, plan: Plan, ways: Ways | None = None
) -> Tensor:
    """Probabilities (1, K, h, w) on the device, of the size of the last scale that was
    computed."""
    ways = ways or Ways()
    sizes = spec.scale_sizes(image.shape[-2], image.shape[-1])
    map = first_map(network, image, sizes[0], spec, ways)
    first = [map] if spec.quirk("kept-results") else []  # noqa: F841 - keeps it alive
    ways.see("prob", map)
    for number, size in enumerate(sizes[1:]):
        if plan.patches == 0:
            break
        map = resize(map, size)
        ways.see("upscaled", map)
        refine = min(number, spec.refinements - 1)
        _refine_scale(network, map, ways.resize(image, size), refine, spec, plan, ways)
        ways.see("prob", map)
    return map


def first_map(network: MagNet, image: Tensor, size: Size, spec: Spec, ways: Ways) -> Tensor:
    """Probabilities (1, K, *input_size) of the whole image, made small in one step.

    As released (`first-patch`) it is resized to the scale first, and then the scale's first patch
    is resized: where the scale is larger than a patch, the rest is never seen.
    """
    if spec.quirk("first-patch"):
        seen = ways.resize(image, size)
        image = boxes_of(size, spec)[0].of(seen)
    return _probabilities(network, ways.resize(image, spec.input_size)[None])


def _refine_scale(
    network: MagNet, map: Tensor, image: Tensor, refine: int, spec: Spec, plan: Plan, ways: Ways
) -> None:
    """Replace the pixels of a map (1, K, H, W) for which the patches of an image (3, H, W) of its
    size are better."""
    size = (map.shape[-2], map.shape[-1])
    boxes = boxes_of(size, spec)
    uncertain = 1 - margin(map[0])
    starts = _chosen(uncertain, boxes, spec, plan, ways)
    found = _from_patches(network, map[0], image, starts, boxes[0], refine, spec, ways)
    merged, inside = _merged(map[0], found, starts, boxes[0], spec, plan)
    ways.see("merged", merged)
    if inside is not None:
        ways.see("inside", inside)
    scores = _smooth(_worth(uncertain, merged, inside, spec), spec)
    del uncertain
    ways.see("error_score", scores)
    replaced = ways.pick(scores, plan.count(size, len(boxes), len(starts)))
    ways.see("selected", replaced)
    del scores
    if inside is not None:
        replaced &= _sampled_mask(inside) if spec.quirk("sampled-mask") else inside
    ways.see("replaced", replaced)
    torch.where(replaced, merged, map[0], out=map[0])


def margin(map: Tensor) -> Tensor:
    """How far the largest of probabilities (K, H, W) is above the second largest: (H, W)."""
    # Class by class: sorting them would take the map twice over.
    best, second = map[0].clone(), torch.zeros_like(map[0])
    for one in map[1:]:
        torch.maximum(second, torch.minimum(best, one), out=second)
        torch.maximum(best, one, out=best)
    return best.sub_(second)


def _chosen(uncertain: Tensor, boxes: list[Box], spec: Spec, plan: Plan, ways: Ways) -> Tensor:
    """(P, 2): starts of the patches to compute, in the order in which they are written."""
    starts = starts_of(boxes, uncertain.device)
    if plan.patches is None and not spec.quirk("overwritten-overlaps"):
        return starts
    displaced = spec.quirk("displaced-crops")
    extent = boxes[0][2:]
    scores = torch.stack(
        [
            align(uncertain[None], start, extent, spec.input_size, displaced).mean()
            for start in starts
        ]
    )
    ways.see("patch_uncertainty", scores)
    order = scores.sort(descending=not spec.quirk("least-uncertain"), stable=True).indices
    starts = starts[order[: plan.patches]]
    ways.see("patch_order", starts)
    return starts


def _from_patches(
    network: MagNet,
    map: Tensor,
    image: Tensor,
    starts: Tensor,
    box: Box,
    refine: int,
    spec: Spec,
    ways: Ways,
) -> Iterable[Tensor]:
    """New probabilities (P, K, *input_size) of the patches, group by group; each is freed before the
    next is computed, unless all are kept, as released."""
    extent = box[2:]
    on_host = starts.to(image.device)

    def early(group: Sequence[int]) -> Tensor:
        patches = [image[:, *places(on_host[i], extent)] for i in group]
        seen = torch.stack([ways.resize(patch, spec.input_size) for patch in patches])
        return _probabilities(network, seen)

    def coarse(group: Sequence[int]) -> Tensor:
        displaced = spec.quirk("displaced-crops")
        return torch.stack(
            [align(map, starts[i], extent, spec.input_size, displaced) for i in group]
        )

    def refined(fine: Tensor, before: Tensor) -> Tensor:
        ways.see("early", fine)
        ways.see("coarse_crop", before)
        pair = (before, fine) if spec.coarse_first else (fine, before)
        new: Tensor = network.refine[refine](*pair).softmax(1)
        ways.see("refined", new)
        return new

    parts = list(groups(range(len(starts)), spec.sub_batch))
    if spec.quirk("kept-results"):
        earlier = [early(group) for group in parts]
        coarser = [coarse(group) for group in parts]
        return [refined(*pair) for pair in zip(earlier, coarser, strict=True)]
    return (refined(early(group), coarse(group)) for group in parts)


def _merged(
    like: Tensor, found: Iterable[Tensor], starts: Tensor, box: Box, spec: Spec, plan: Plan
) -> tuple[Tensor, Tensor | None]:
    """Patches' probabilities as a map like (K, H, W), 0 where there is none; and, where not all
    patches were computed, the pixels (H, W) bool inside one, without its frame.

    Where patches overlap it is their mean. As released (`overwritten-overlaps`) it is the last one
    divided by the number of patches, those in whose frame a pixel lies not counted.
    """
    extent = (box.height, box.width)
    overwrite = spec.quirk("overwritten-overlaps")
    merged = torch.zeros_like(like)
    counts = like.new_zeros(like.shape[-2:])
    inside = counts
    if plan.patches is not None and not overwrite:
        inside = torch.zeros_like(counts)
    number = 0
    for group in found:
        for one in group:
            where = places(starts[number], extent)
            inner = places(starts[number], extent, spec.frame_px)
            new = resize(one[None], extent)[0]
            merged[:, *where] = new if overwrite else merged[:, *where] + new
            inside[inner] += 1
            if not overwrite and inside is not counts:
                counts[where] += 1
            number += 1
    chosen = None if plan.patches is None else inside > 0
    merged.div_(counts.clamp_(min=1))
    return merged, chosen


def _worth(uncertain: Tensor, merged: Tensor, inside: Tensor | None, spec: Spec) -> Tensor:
    """Score of replacing each pixel (H, W): high where the map is uncertain and the patches are
    certain; with a few patches, inside them where the map is uncertain.

    As released (`zero-inside`) the certainty of a few patches is set to 0 inside them, where alone
    pixels are replaced; only their frames have a score above 0.
    """
    if inside is not None and not spec.quirk("zero-inside"):
        return uncertain.mul_(inside)
    certain = margin(merged)
    if inside is not None:
        certain.masked_fill_(inside, 0)
    return uncertain.mul_(certain)


def _smooth(scores: Tensor, spec: Spec) -> Tensor:
    """The median around each position of scores (H, W), resized to `input_size`; padded with 0."""
    size, side = scores.shape, spec.smooth_px
    small = F.interpolate(scores[None, None], spec.input_size, mode="nearest")[0, 0]
    small = F.pad(small, [side // 2] * 4)
    around = small.unfold(0, side, 1).unfold(1, side, 1).flatten(2)  # (h, w, side * side)
    small = around.median(2).values
    del around
    return F.interpolate(small[None, None], size, mode="nearest")[0, 0]


def _sampled_mask(mask: Tensor) -> Tensor:
    """As released: whether a bilinear sample of a mask (H, W) at a pixel's centre, found by numbers
    of 32 bits between -1 and 1, is above 0; rounding includes single pixels beside the mask."""
    axes = []
    for side in mask.shape:
        step = 1 / side
        centres = step / 2 + torch.arange(side, dtype=torch.float32, device=mask.device) * step
        axes.append(2 * centres - 1)
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], 2)  # (H, W, 2): x, y
    values = mask[None, None].float()
    return F.grid_sample(values, grid[None], align_corners=False)[0, 0] > 0


def _probabilities(network: MagNet, images: Tensor) -> Tensor:
    """(N, K, H, W) of images (N, 3, H, W) uint8."""
    found: Tensor = network.backbone(network.normalise(images)).softmax(1)
    return found


def coarse(network: MagNet, image: Tensor, spec: Spec) -> Tensor:
    """The first scale alone; enlarged on the host."""
    size = (image.shape[-2], image.shape[-1])
    sizes = spec.scale_sizes(*size)
    map = first_map(network, image, sizes[0], spec, Ways()).to(image.device)
    return labels_of(resize(map, size)[0])


def progressive(network: MagNet, image: Tensor, spec: Spec) -> Tensor:
    """MagNet: every patch of every later scale."""
    return _labels(progress(network, image, spec, Plan(None, spec.points)), image)


def fast(network: MagNet, image: Tensor, spec: Spec) -> Tensor:
    """MagNet-Fast: a few patches of each later scale."""
    return _labels(progress(network, image, spec, Plan(spec.fast_patches, spec.fast_points)), image)


def _labels(map: Tensor, image: Tensor) -> Tensor:
    return labels_of(resize(map, (image.shape[-2], image.shape[-1]))[0]).to(image.device)


def _first_input(spec: Spec, height_px: int, width_px: int) -> list[NetworkInput]:
    """The whole image, shrunk; the patches of `fast` depend on its result."""
    return [NetworkInput.whole(height_px, width_px, spec.input_size)]


def _all_inputs(spec: Spec, height_px: int, width_px: int) -> list[NetworkInput]:
    """The whole image, shrunk, and the patches of each later scale."""
    found, image = _first_input(spec, height_px, width_px), (height_px, width_px)
    for number, size in enumerate(spec.scale_sizes(*image)[1:], 2):
        boxes = tuple(scaled(box, size, image) for box in boxes_of(size, spec))
        found.append(NetworkInput(f"patches at scale {number}", boxes, spec.input_size))
    return found


STRATEGIES = {
    "coarse": Strategy(coarse, ("backbone",), inputs=_first_input),
    "progressive": Strategy(progressive, inputs=_all_inputs),
    "fast": Strategy(fast, inputs=_first_input),
}
