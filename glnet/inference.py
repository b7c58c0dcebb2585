"""GLNet's inference strategies: one branch alone, one branch helping the other, or both ways.

A strategy first computes scores (K, h, w), at the image's size or, for the global branch alone, at
1/4 of its input. As in the official code the device never holds scores of the image's size. Of an
image on the host (on a GPU only with `test_time` or in a box) they and the stored maps of the patches
stay there, as in the official code."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.errors import UserError
from bench.method import ByWindows, Inputs, NetworkInput, Strategy
from bench.tiling import (
    Box,
    Image,
    Large,
    Merger,
    bounding_box,
    crop,
    crop_all,
    cut,
    grid,
    groups,
    labels_of,
    map_store,
    pending_groups,
    relaxed,
    resize,
    scores_by_patches,
    shrink_image,
    summed_over_turnings,
)
from glnet.fast.collapsed_head import collapse
from glnet.model import Aggregation, GLNet, Maps, Output, SharedMaps
from glnet.spec import Spec

Scores = Callable[[GLNet, Image, Tensor, Spec], Tensor]
"""(network, image (3, H, W) uint8, the same shrunk to the global branch's size, spec) -> scores
(K, h, w); images and scores on the host. Of an image on the disk there are no scores where they
would have its size."""


def boxes_of(height_px: int, width_px: int, spec: Spec) -> list[Box]:
    """The patches of an image.

    Raises:
        UserError: the official grid is asked for, and the official code crashes or hangs here.
    """
    patch = spec.patch_size
    if spec.quirk("strict-grid"):
        if min(patch) < 50:
            raise UserError(
                f"The official code never returns from its grid for patches of {patch[0]} x "
                f"{patch[1]} px: take `strict-grid` out of the spec's `official`."
            )
        if height_px <= patch[0] or width_px <= patch[1]:
            raise UserError(
                f"The official code divides by zero on an image of {height_px} x {width_px} px "
                f"with patches of {patch[0]} x {patch[1]} px: take `strict-grid` out of the "
                "spec's `official`."
            )
    return grid(height_px, width_px, patch, spec.overlap_px)


def boxes_within(box: Box, spec: Spec) -> list[Box]:
    """The patches of a part of an image, in the image's pixels."""
    inner = grid(box.height, box.width, spec.patch_size, spec.overlap_px)
    return [one._replace(top=box.top + one.top, left=box.left + one.left) for one in inner]


def shared_crops(maps: Maps, boxes: Sequence[Box], size: tuple[int, int], spec: Spec) -> SharedMaps:
    """The global branch's maps, cropped to patches of an image of `size` (H, W)."""
    return crop_all(maps[: spec.shared_kinds], boxes, size, spec.quirk("loose-crops"))


def scores_global(network: GLNet, image: Image, small: Tensor, spec: Spec) -> Tensor:
    """The global branch alone, at 1/4 of its input."""
    height, width = spec.global_size
    if spec.quirk("quarter-sides") and (height != width or height % 4):
        raise UserError(
            f"The official code crashes on a global input of {height} x {width} px: take "
            "`quarter-sides` out of the spec's `official`, or take a square that 4 divides."
        )
    output: Output = network.global_branch(network.normalise(small[None]))
    return output.logits[0].to(image.device)


def scores_local(network: GLNet, image: Image, small: Tensor, spec: Spec) -> Tensor:
    """The local branch alone, patch by patch, without shared features."""

    def score(group: Sequence[Box]) -> Tensor:
        output: Output = network.local_alone(network.normalise(cut(image, group)))
        return output.logits

    boxes = boxes_of(image.shape[-2], image.shape[-1], spec)
    return scores_by_patches(image, boxes, spec.sub_batch, score, _sums(spec), spec.blend)


def scores_global_to_local(network: GLNet, image: Image, small: Tensor, spec: Spec) -> Tensor:
    """The global branch runs once and shares crops of its maps with every patch (mode 2 of the
    official code)."""
    whole: Output = network.global_branch(network.normalise(small[None]))
    boxes = boxes_of(image.shape[-2], image.shape[-1], spec)
    return _refined(network, image, whole, boxes, spec)


def _refined(
    network: GLNet, image: Image, whole: Output, boxes: Sequence[Box], spec: Spec
) -> Tensor:
    size = (image.shape[-2], image.shape[-1])

    def score(group: Sequence[Box]) -> Tensor:
        patches = network.normalise(cut(image, group))
        local = network.local_branch(patches, shared_crops(whole.maps, group, size, spec))
        shared = crop(whole.fused, group, size, spec.quirk("loose-crops"))
        logits: Tensor = network.aggregation(local.fused, shared)
        return logits

    return scores_by_patches(image, boxes, spec.sub_batch, score, _sums(spec), spec.blend)


def scores_collaborative(network: GLNet, image: Image, small: Tensor, spec: Spec) -> Tensor:
    """The merged maps of the patches are also shared with a second global branch (mode 3 of the
    official code)."""
    boxes = boxes_of(image.shape[-2], image.shape[-1], spec)
    return _both_ways(network, image, small, boxes, spec)


def _both_ways(
    network: GLNet, image: Image, small: Tensor, boxes: Sequence[Box], spec: Spec
) -> Tensor:
    size = (image.shape[-2], image.shape[-1])
    whole = network.normalise(small[None])
    global_maps: Maps = network.global_branch(whole).maps
    # With collapsed heads the device holds one set of whole-image maps at a time; the official code
    # holds both.
    beside = torch.device("cpu") if spec.head == "collapsed" else None
    merger = merger_of(global_maps, boxes, size, spec, beside)
    aggregation = network.aggregation_borrowing
    split = not isinstance(image, Tensor) and isinstance(aggregation, Aggregation)
    kept = map_store(image)  # the groups' fused maps, or by windows their part of the scores
    for group in pending_groups(image, groups(boxes, spec.sub_batch), merger):
        patches = network.normalise(cut(image, group))
        around = shared_crops(global_maps, group, size, spec)
        local: Output = network.local_branch(patches, around, merger.sizes(group[0]))
        merger.add(local.maps[: spec.shared_kinds], group, spec.quirk("loose-crops"))
        mine = _own_part(aggregation, local.fused) if split else local.fused
        kept[group[0]] = mine.to(image.device)
        del patches, around, local, mine  # else they are alive while the next group is worked out
    del global_maps
    merged = [[level.to(network.mean.device) for level in kind] for kind in merger.mean()]
    shared: Tensor = network.global_borrowing(whole, merged).fused
    del merger, merged, whole

    def score(group: Sequence[Box]) -> Tensor:
        mine = kept.pop(group[0]).to(shared.device)
        around = crop(shared, group, size, spec.quirk("loose-crops"))
        if split:
            return mine + _shared_part(
                aggregation, resize(around, (mine.shape[-2], mine.shape[-1]))
            )
        logits: Tensor = aggregation(mine, around)
        return logits

    return scores_by_patches(image, boxes, spec.sub_batch, score, _sums(spec), spec.blend)


def _own_part(aggregation: Aggregation, fused: Tensor) -> Tensor:
    """A patch's part of the aggregation's scores (N, K, h, w): it takes a 4 S / K of the fused map's
    memory. The sum of both parts is the aggregation up to rounding, since a convolution is linear."""
    return F.conv2d(fused, aggregation.conv.weight.chunk(2, 1)[0], padding=1)


def _shared_part(aggregation: Aggregation, shared: Tensor) -> Tensor:
    """The whole image's part, and the bias."""
    conv = aggregation.conv
    return F.conv2d(shared, conv.weight.chunk(2, 1)[1], conv.bias, padding=1)


def merger_of(
    like: Maps,
    boxes: Sequence[Box],
    size: tuple[int, int],
    spec: Spec,
    device: torch.device | None = None,
) -> Merger:
    """Merges the maps of an image's patches into maps of the sizes that `like` has."""
    return Merger(like.features, size, boxes if spec.quirk("template-merge") else (), device)


def scores_coarse_to_fine(network: GLNet, image: Image, small: Tensor, spec: Spec) -> Tensor:
    """`global-to-local` in a box alone, for binary labels with little foreground: the local branch
    refines patches inside the bounding box of the global branch's foreground; elsewhere the global
    branch's scores stay.

    Described in the paper, never released. On fake tensors, which hold no labels, the box is the
    whole image: predicted memory is an upper bound.
    """
    whole: Output = network.global_branch(network.normalise(small[None]))

    def refine(boxes: Sequence[Box]) -> Tensor:
        return _refined(network, image, whole, boxes, spec)

    return _in_box(image, whole.logits, spec, refine)


def scores_coarse_to_fine_both_ways(
    network: GLNet, image: Image, small: Tensor, spec: Spec
) -> Tensor:
    """`collaborative` in such a box alone: what the patches share back covers the box, and is 0
    elsewhere. The paper does not say how the two are combined."""
    logits = network.global_branch(network.normalise(small[None])).logits

    def refine(boxes: Sequence[Box]) -> Tensor:
        return _both_ways(network, image, small, boxes, spec)

    return _in_box(image, logits, spec, refine)


def _in_box(
    image: Image, logits: Tensor, spec: Spec, refine: Callable[[Sequence[Box]], Tensor]
) -> Tensor:
    """The global branch's scores, and in the box of its foreground those of `refine(patches)`."""
    size = (image.shape[-2], image.shape[-1])
    scores = resize(logits.to(image.device), size, spec.enlarge)[0]
    found = bounding_box(labels_of(scores) == spec.foreground)
    if found is not None:
        box = relaxed(found, size, spec.margin, spec.patch_size)
        box.of(scores).copy_(box.of(refine(boxes_within(box, spec))))
    return scores


def total_of(scores: Scores) -> Callable[[GLNet, Tensor, Spec], Tensor]:
    """`scores` of an image in memory, summed over the spec's test-time augmentations."""

    def total(network: GLNet, image: Tensor, spec: Spec) -> Tensor:
        def score(turned: Tensor) -> Tensor:
            small = shrink_image(turned, spec.global_size)
            if spec.quirk("unturned-patches"):
                # Its patches come from the unturned image, whatever the orientation of the global
                # input.
                if turned.shape != image.shape:
                    raise UserError(
                        "The official code crashes where it turns an image that is not square: "
                        "take `unturned-patches` out of the spec's `official`."
                    )
                turned = image
            return scores(network, turned, small, spec)

        return summed_over_turnings(image, spec.test_time, score)

    return total


def in_memory(scores: Scores, parts: tuple[str, ...], inputs: Inputs) -> Strategy:
    """The strategy of an image in memory: its labels are the best of `scores`.

    With `nearest`, enlarging labels gives the same map as enlarging scores, which the official code
    does, and takes less memory.
    """
    total = total_of(scores)

    def enlarged(network: GLNet, image: Tensor, spec: Spec) -> Tensor:
        size = (image.shape[-2], image.shape[-1])
        return resize(total(network, image, spec)[None], size, spec.enlarge)[0]

    def predict(network: GLNet, image: Tensor, spec: Spec) -> Tensor:
        if spec.enlarge == "bilinear":
            return labels_of(enlarged(network, image, spec))
        labels = labels_of(total(network, image, spec))[None, None]
        return resize(labels, (image.shape[-2], image.shape[-1]), "nearest")[0, 0]

    return Strategy(predict, parts, prepare, scores=enlarged, inputs=inputs)


def by_windows(scores: Scores, spec: Spec) -> ByWindows | None:
    """The same for an image on the disk; None where a setting needs the whole image in memory."""
    if spec.test_time or spec.quirk("template-merge"):
        return None

    def predict(network: GLNet, image: Large, spec: Spec) -> None:
        small = shrink_image(image, spec.global_size)
        found = scores(network, image, small, spec)
        if found.numel():
            image.enlarge(found, spec.enlarge)

    return predict


def _sums(spec: Spec) -> torch.dtype | None:
    return torch.float64 if spec.quirk("float64-scores") else None


def prepare(network: GLNet, spec: Spec) -> nn.Module:
    """The network that a strategy receives: with the heads that the spec selects."""
    return collapse(network) if spec.head == "collapsed" else network


def _shrunk(spec: Spec, height_px: int, width_px: int) -> list[NetworkInput]:
    """The image as the global branch receives it."""
    return [NetworkInput.whole(height_px, width_px, spec.global_size)]


def _patches(spec: Spec, height_px: int, width_px: int) -> list[NetworkInput]:
    """The patches of the local branch."""
    return [
        NetworkInput.patches(grid(height_px, width_px, spec.patch_size, spec.overlap_px)),
    ]


def _both(spec: Spec, height_px: int, width_px: int) -> list[NetworkInput]:
    return _shrunk(spec, height_px, width_px) + _patches(spec, height_px, width_px)


def _strategy(scores: Scores, inputs: Inputs, *parts: str) -> Strategy:
    def windows(spec: Spec) -> ByWindows | None:
        return by_windows(scores, spec)

    return replace(in_memory(scores, parts, inputs), by_windows=windows)


STRATEGIES = {
    "global": _strategy(scores_global, _shrunk, "global_branch"),
    "local": _strategy(scores_local, _patches, "local_alone"),
    "global-to-local": _strategy(
        scores_global_to_local, _both, "global_branch", "local_branch", "aggregation"
    ),
    "collaborative": _strategy(
        scores_collaborative,
        _both,
        *("global_branch", "local_branch", "global_borrowing", "aggregation_borrowing"),
    ),
    # Needs the global branch's labels at the image's own size: no windows, and its patches depend
    # on them.
    "coarse-to-fine": in_memory(
        scores_coarse_to_fine, ("global_branch", "local_branch", "aggregation"), _shrunk
    ),
    "coarse-to-fine-both-ways": in_memory(
        scores_coarse_to_fine_both_ways,
        ("global_branch", "local_branch", "global_borrowing", "aggregation_borrowing"),
        _shrunk,
    ),
}
