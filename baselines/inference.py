"""How a plain network meets an image that is too large: shrink it, cut it, or take it whole.

As in GLNet's strategies, scores at full resolution live on the host where they can (not in `whole`,
whose cost they are)."""

from torch import Tensor, nn

from baselines.spec import Spec
from bench.method import Strategy
from bench.tiles import cut, grid, labels_of, resize, scores_by_patches, shrink_image


def downsample(network: nn.Module, image: Tensor, spec: Spec) -> Tensor:
    """The whole image shrunk to a square of `size_px`; scores enlarged bilinearly on the host."""
    small = shrink_image(image, (spec.size_px, spec.size_px))
    scores = network(small[None]).to(image.device)
    return labels_of(resize(scores, (image.shape[-2], image.shape[-1]))[0])


def patch(network: nn.Module, image: Tensor, spec: Spec) -> Tensor:
    """Overlapping patches of `size_px`; scores averaged on the host where they overlap."""
    boxes = grid(image.shape[-2], image.shape[-1], spec.size_px, spec.overlap_px)
    scores = scores_by_patches(
        image, boxes, spec.sub_batch, lambda group: network(cut(image, group))
    )
    return labels_of(scores)


def whole(network: nn.Module, image: Tensor, spec: Spec) -> Tensor:
    """The image at its own resolution in one piece: what memory is paid for."""
    return labels_of(network(image[None])[0]).to(image.device)


STRATEGIES = {
    "downsample": Strategy(downsample),
    "patch": Strategy(patch),
    "whole": Strategy(whole),
}
