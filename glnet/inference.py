"""How GLNet meets an image of any size: one branch alone, one helping the other, or each the other.

Scores at full resolution and the patches' kept maps live on the host, as in the official code: the
device never holds anything of the image's size."""

from collections.abc import Sequence

from torch import Tensor

from bench.method import Strategy
from bench.tiles import (
    Box,
    Merger,
    crop,
    crop_all,
    cut,
    grid,
    groups,
    labels_by_patches,
    labels_of,
    resize,
    shrink_image,
)
from glnet.model import GLNet, Maps, Output
from glnet.spec import Spec


def whole_image(network: GLNet, image: Tensor, spec: Spec) -> Tensor:
    """The input of the global branch: (3, H, W) uint8 on the host -> (1, 3, global_px, global_px)
    normalised."""
    small = shrink_image(image, (spec.global_px, spec.global_px))
    return network.normalise(small[None])


def boxes_of(image: Tensor, spec: Spec) -> list[Box]:
    """The patches of an image (3, H, W)."""
    return grid(image.shape[-2], image.shape[-1], spec.patch_px, spec.overlap_px)


def predict_global(network: GLNet, image: Tensor, spec: Spec) -> Tensor:
    """The global branch alone; its labels at 1/4 of its input are enlarged to the image.

    Enlarging labels or, as the official code does, logits gives the same map: resizing is nearest.
    """
    logits = network.global_branch(whole_image(network, image, spec)).logits
    labels = labels_of(logits[0]).to(image.device)
    return resize(labels[None, None], (image.shape[-2], image.shape[-1]), "nearest")[0, 0]


def predict_local(network: GLNet, image: Tensor, spec: Spec) -> Tensor:
    """The local branch alone, patch after patch, nothing lent."""

    def score(group: Sequence[Box]) -> Tensor:
        output: Output = network.local_alone(network.normalise(cut(image, group)))
        return output.logits

    return labels_by_patches(image, boxes_of(image, spec), spec.sub_batch, score)


def predict_global_to_local(network: GLNet, image: Tensor, spec: Spec) -> Tensor:
    """The global branch runs once and lends crops of its maps to every patch (the code's mode
    2)."""
    size = (image.shape[-2], image.shape[-1])
    whole: Output = network.global_branch(whole_image(network, image, spec))

    def score(group: Sequence[Box]) -> Tensor:
        patches = network.normalise(cut(image, group))
        local = network.local_branch(patches, Maps(*crop_all(whole.maps, group, size)))
        logits: Tensor = network.aggregation(local.fused, crop(whole.fused, group, size))
        return logits

    return labels_by_patches(image, boxes_of(image, spec), spec.sub_batch, score)


def predict_collaborative(network: GLNet, image: Tensor, spec: Spec) -> Tensor:
    """The patches' maps are merged and lent to a second global branch as well (the code's mode
    3)."""
    size = (image.shape[-2], image.shape[-1])
    boxes = boxes_of(image, spec)
    small = whole_image(network, image, spec)
    lender: Maps = network.global_branch(small).maps
    merger = Merger(lender.features, size)
    kept: list[Tensor] = []  # the groups' fused maps, on the host
    for group in groups(boxes, spec.sub_batch):
        patches = network.normalise(cut(image, group))
        local: Output = network.local_branch(patches, Maps(*crop_all(lender, group, size)))
        merger.add(local.maps, group)
        kept.append(local.fused.to(image.device))
        del patches, local  # else they are alive while the next group is worked out
    del lender
    shared: Tensor = network.global_borrowing(small, Maps(*merger.mean())).fused
    del merger, small

    def score(group: Sequence[Box]) -> Tensor:
        fused = kept.pop(0).to(shared.device)
        logits: Tensor = network.aggregation_borrowing(fused, crop(shared, group, size))
        return logits

    return labels_by_patches(image, boxes, spec.sub_batch, score)


STRATEGIES = {
    "global": Strategy(predict_global, ("global_branch",)),
    "local": Strategy(predict_local, ("local_alone",)),
    "global-to-local": Strategy(
        predict_global_to_local, ("global_branch", "local_branch", "aggregation")
    ),
    "collaborative": Strategy(
        predict_collaborative,
        ("global_branch", "local_branch", "global_borrowing", "aggregation_borrowing"),
    ),
}
