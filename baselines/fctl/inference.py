"""FCtL's inference strategies: patch by patch, each with its contexts.

Contexts are cut and shrunk on the host, in 8 bits like Pillow's; the device holds one group of
patches, its contexts and their maps."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from baselines.fctl.model import FCtL
from baselines.fctl.spec import Spec
from bench.method import NetworkInput, Strategy, by_scores
from bench.tiling import Box, Image, cut, grid, scores_by_patches, shrink_image

Shrink = Callable[[Tensor, tuple[int, int]], Tensor]
"""(3, H, W) uint8 at another size. Pillow's results sometimes differ from ours by a grey level."""


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


def windows(strategy: str, spec: Spec) -> dict[str, float]:
    """The contexts of a patch that are windows around it: sides in patches, by name."""
    found = {}
    if strategy in ("medium", "contexts"):
        found["medium"] = spec.medium
    if strategy in ("large", "contexts") and spec.variant == "inria":
        found["large"] = spec.large_factor
    return found


def scores(
    network: FCtL, image: Image, spec: Spec, strategy: str, shrink: Shrink = shrink_image
) -> Tensor:
    """Scores (K, h, w) of an image (3, H, W) uint8, both on the host.

    They have the image's size, so that there are none of an image on the disk; but those of `large`
    in the `deepglobe` variant have the size of the shrunk whole image.
    """
    whole = None
    if spec.variant == "deepglobe" and strategy in ("large", "contexts"):
        whole = _whole(network, image, spec, shrink)
        if strategy == "large":
            return context_logits(network, "large", whole, None)[0].to(image.device)
        whole = network.large_vgg(whole).pool5  # one map serves every patch
    factors = windows(strategy, spec)

    def score(group: Sequence[Box]) -> Tensor:
        def given(name: str) -> Tensor:
            if name == "patches":
                return cut(image, group)
            return contexts(image, group, factors[name], shrink)

        return logits(network, strategy, given, whole)

    boxes = boxes_of(image.shape[-2], image.shape[-1], spec)
    sums = torch.float64 if spec.quirk("float64-scores") else None
    return scores_by_patches(image, boxes, spec.sub_batch, score, sums, spec.blend)


def _whole(network: FCtL, image: Image, spec: Spec, shrink: Shrink) -> Tensor:
    size = spec.whole_size
    small = shrink(image, size) if isinstance(image, Tensor) else image.shrink(size)
    return network.normalise(small[None])


def logits(
    network: FCtL, strategy: str, given: Callable[[str], Tensor], whole: Tensor | None
) -> Tensor:
    """Scores (P, K, h, w) of patches: without context (the code's mode 1), with one of the two (mode
    2; for `large` there is none), or with both (mode 3; mode 4 of the `deepglobe` variant).

    Args:
        given: name of an input, `patches` or a context -> (P, 3, h, w) uint8.
        whole: the map of the shrunk whole image, in place of the large contexts.
    """
    if strategy == "contexts":
        with torch.no_grad():
            medium = network.medium_vgg(network.normalise(given("medium"))).pool5
            if whole is None:
                whole = network.large_vgg(network.normalise(given("large"))).pool5
        joined: Tensor = network.local(network.normalise(given("patches")), medium, whole)
        return joined
    patches = network.normalise(given("patches"))
    if strategy == "plain":
        alone: Tensor = network.plain(patches)
        return alone
    return context_logits(network, strategy, patches, network.normalise(given(strategy)))


def context_logits(network: FCtL, name: str, inputs: Tensor, around: Tensor | None) -> Tensor:
    """Scores of normalised patches (P, 3, h, w) with their contexts `name`, both through one VGG, or
    of whole images without any."""
    vgg, rest = network.get_submodule(f"{name}_vgg"), network.get_submodule(f"{name}_rest")
    context = None if around is None else vgg(around).pool5
    found: Tensor = rest(vgg(inputs), context, (inputs.shape[-2], inputs.shape[-1]))
    return found


def inputs(strategy: str, spec: Spec, height_px: int, width_px: int) -> list[NetworkInput]:
    """Patches and their contexts."""
    boxes = boxes_of(height_px, width_px, spec)
    patches = NetworkInput.patches(boxes)
    around = [
        NetworkInput(
            f"{name} contexts",
            tuple(context_of(box, factor) for box in boxes),
            patches.input_px,
            context=True,
        )
        for name, factor in windows(strategy, spec).items()
    ]
    if spec.variant == "inria" or strategy in ("plain", "medium"):
        return [patches, *around]
    whole = NetworkInput.whole(height_px, width_px, spec.whole_size)
    return [whole] if strategy == "large" else [whole, patches, *around]


IDLE = ("idle_medium", "idle_large", "idle_local", "idle_head")


def _strategy(name: str, *parts: str) -> Strategy:
    return by_scores(
        lambda network, image, spec: scores(network, image, spec, name),
        lambda spec, height, width: inputs(name, spec, height, width),
        parts,
    )


STRATEGIES = {
    "plain": _strategy("plain", "plain", "idle_plain"),
    "medium": _strategy("medium", "medium_vgg", "medium_rest", "idle_medium", "idle_block"),
    "large": _strategy("large", "large_vgg", "large_rest", "idle_large", "idle_block"),
    "contexts": _strategy("contexts", "medium_vgg", "large_vgg", "local", *IDLE),
}
