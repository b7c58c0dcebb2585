"""FCtL's inference strategies: patch by patch, each with its contexts.

Contexts are cut and shrunk on the host, in 8 bits like Pillow's; the device holds one group of
patches, its contexts and their maps."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from baselines.fctl.model import FCtL
from baselines.fctl.spec import Spec
from bench.method import ByWindows, Strategy
from bench.tiling import (
    Box,
    Image,
    Large,
    cut,
    grid,
    labels_of,
    resize,
    scores_by_patches,
    shrink_image,
    summed_over_turnings,
)

Shrink = Callable[[Tensor, tuple[int, int]], Tensor]
"""(3, H, W) uint8 at another size. Pillow's results sometimes differ from ours by a grey level."""
Scores = Callable[[FCtL, Image, Spec, Shrink], Tensor]
"""(network, image (3, H, W) uint8 on the host, spec, ..) -> scores (K, h, w) on the host. Of an
image on the disk there are no scores where they would have its size."""


def boxes_of(height_px: int, width_px: int, spec: Spec) -> list[Box]:
    """The patches of an image."""
    return grid(height_px, width_px, spec.patch_size, spec.overlap_px)


def contexts(
    image: Image, boxes: Sequence[Box], factor: float, shrink: Shrink = shrink_image
) -> Tensor:
    """The context of each of P patches of one size, shrunk to that size: (P, 3, h, w) uint8.

    The window has `factor` times the patch's sides and the patch in its middle; beyond the image it
    is black. At odd margins the extra pixel is right and below, as in the released code.
    """

    def shrunk(box: Box) -> Tensor:
        top, left, height, width = context_of(box, factor)
        inside = Box(max(top, 0), max(left, 0), height, width)
        inside = inside._replace(
            height=min(top + height, image.shape[-2]) - inside.top,
            width=min(left + width, image.shape[-1]) - inside.left,
        )
        before = (inside.left - left, inside.top - top)
        after = (width - inside.width - before[0], height - inside.height - before[1])
        window = F.pad(cut(image, [inside])[0], (before[0], after[0], before[1], after[1]))
        return shrink(window, (box.height, box.width))

    return torch.stack([shrunk(box) for box in boxes])


def context_of(box: Box, factor: float) -> Box:
    """The window of a context: `factor` times the patch's sides, the patch in its middle."""
    return Box(
        box.top - int((factor - 1) * box.height / 2),
        box.left - int((factor - 1) * box.width / 2),
        int(factor * box.height),
        int(factor * box.width),
    )


def scores_plain(network: FCtL, image: Image, spec: Spec, shrink: Shrink = shrink_image) -> Tensor:
    """The FCN-8s alone, patch after patch (the code's mode 1)."""

    def score(group: Sequence[Box]) -> Tensor:
        scores: Tensor = network.plain(network.normalise(cut(image, group)))
        return scores

    return _by_patches(image, spec, score)


def scores_medium(network: FCtL, image: Image, spec: Spec, shrink: Shrink = shrink_image) -> Tensor:
    """Patches with the medium context alone, both through one VGG (mode 2)."""

    def score(group: Sequence[Box]) -> Tensor:
        patches = network.normalise(cut(image, group))
        around = network.normalise(contexts(image, group, spec.medium, shrink))
        return medium_logits(network, patches, around)

    return _by_patches(image, spec, score)


def scores_large(network: FCtL, image: Image, spec: Spec, shrink: Shrink = shrink_image) -> Tensor:
    """Patches with the large context alone; in the `deepglobe` variant the small whole image
    (mode 0), whose scores have its size."""
    if spec.variant == "deepglobe":
        return large_logits(network, _whole(network, image, spec, shrink), None)[0].to(image.device)

    def score(group: Sequence[Box]) -> Tensor:
        patches = network.normalise(cut(image, group))
        around = network.normalise(contexts(image, group, spec.large_factor, shrink))
        return large_logits(network, patches, around)

    return _by_patches(image, spec, score)


def scores_contexts(
    network: FCtL, image: Image, spec: Spec, shrink: Shrink = shrink_image
) -> Tensor:
    """Patches with both contexts (mode 3; mode 4 of the `deepglobe` variant)."""
    whole = torch.empty(0)
    if spec.variant == "deepglobe":  # one map serves every patch
        whole = network.large_vgg(_whole(network, image, spec, shrink)).pool5

    def score(group: Sequence[Box]) -> Tensor:
        medium = network.medium_vgg(
            network.normalise(contexts(image, group, spec.medium, shrink))
        ).pool5
        large = whole
        if spec.variant == "inria":
            large = network.normalise(contexts(image, group, spec.large_factor, shrink))
            large = network.large_vgg(large).pool5
        scores: Tensor = network.local(network.normalise(cut(image, group)), medium, large)
        return scores

    return _by_patches(image, spec, score)


def medium_logits(network: FCtL, patches: Tensor, around: Tensor) -> Tensor:
    """Scores of normalised patches (P, 3, h, w) with their medium contexts."""
    context = network.medium_vgg(around).pool5
    size = (patches.shape[-2], patches.shape[-1])
    scores: Tensor = network.medium_rest(network.medium_vgg(patches), context, size)
    return scores


def large_logits(network: FCtL, inputs: Tensor, around: Tensor | None) -> Tensor:
    """Scores of normalised patches with their large contexts, or of whole images without any."""
    context = None if around is None else network.large_vgg(around).pool5
    size = (inputs.shape[-2], inputs.shape[-1])
    scores: Tensor = network.large_rest(network.large_vgg(inputs), context, size)
    return scores


def by_labels(scores: Scores) -> Callable[[FCtL, Tensor, Spec], Tensor]:
    """The strategy whose labels are the best of `scores`, summed over the spec's test-time
    augmentations."""

    def predict(network: FCtL, image: Tensor, spec: Spec) -> Tensor:
        def score(turned: Tensor) -> Tensor:
            return scores(network, turned, spec, shrink_image)

        total = summed_over_turnings(image, spec.test_time, score)
        size = (image.shape[-2], image.shape[-1])
        return labels_of(resize(total[None], size)[0])

    return predict


def by_windows(scores: Scores, spec: Spec) -> ByWindows | None:
    """The same for an image on the disk; None where a setting needs the whole image in memory."""
    if spec.test_time:
        return None

    def predict(network: FCtL, image: Large, spec: Spec) -> None:
        found = scores(network, image, spec, shrink_image)
        if found.numel():
            image.enlarge(found, "bilinear")

    return predict


def _by_patches(image: Image, spec: Spec, score: Callable[[Sequence[Box]], Tensor]) -> Tensor:
    boxes = boxes_of(image.shape[-2], image.shape[-1], spec)
    sums = torch.float64 if spec.quirk("float64-scores") else None
    return scores_by_patches(image, boxes, spec.sub_batch, score, sums)


def _whole(network: FCtL, image: Image, spec: Spec, shrink: Shrink) -> Tensor:
    size = spec.whole_size
    small = shrink(image, size) if isinstance(image, Tensor) else image.shrink(size)
    return network.normalise(small[None])


IDLE = ("idle_medium", "idle_large", "idle_local", "idle_head")


def _strategy(scores: Scores, *parts: str) -> Strategy:
    return Strategy(by_labels(scores), parts, by_windows=lambda spec: by_windows(scores, spec))


STRATEGIES = {
    "plain": _strategy(scores_plain, "plain", "idle_plain"),
    "medium": _strategy(scores_medium, "medium_vgg", "medium_rest", "idle_medium", "idle_block"),
    "large": _strategy(scores_large, "large_vgg", "large_rest", "idle_large", "idle_block"),
    "contexts": _strategy(scores_contexts, "medium_vgg", "large_vgg", "local", *IDLE),
}
