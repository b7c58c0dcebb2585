"""Inference strategies of a single network: on the shrunk image, on patches, or on the whole image.

As in GLNet's strategies, full-resolution scores are on the host, except in `whole`."""

from torch import Tensor, nn

from baselines.generic.spec import Spec
from bench.method import Strategy
from bench.tiling import Image, Large, cut, grid, labels_of, resize, scores_by_patches, shrink_image


def downsample(network: nn.Module, image: Tensor, spec: Spec) -> Tensor:
    """The whole image shrunk to a square of `size_px`; scores upsampled bilinearly on the host."""
    scores = _downsampled(network, image, spec)
    return labels_of(resize(scores, (image.shape[-2], image.shape[-1]))[0])


def _downsampled(network: nn.Module, image: Image, spec: Spec) -> Tensor:
    small = shrink_image(image, (spec.size_px, spec.size_px))
    scores: Tensor = network(small[None])
    return scores.to(image.device)


def patch(network: nn.Module, image: Tensor, spec: Spec) -> Tensor:
    """Overlapping patches of `size_px`; scores averaged on the host where they overlap."""
    return labels_of(_summed(network, image, spec))


def _summed(network: nn.Module, image: Image, spec: Spec) -> Tensor:
    boxes = grid(image.shape[-2], image.shape[-1], spec.size_px, spec.overlap_px)
    return scores_by_patches(image, boxes, spec.sub_batch, lambda group: network(cut(image, group)))


def whole(network: nn.Module, image: Tensor, spec: Spec) -> Tensor:
    """The image at its own resolution in one pass."""
    return labels_of(network(image[None])[0]).to(image.device)


def _downsample_by_windows(network: nn.Module, image: Large, spec: Spec) -> None:
    image.enlarge(_downsampled(network, image, spec)[0], "bilinear")


def _patch_by_windows(network: nn.Module, image: Large, spec: Spec) -> None:
    _summed(network, image, spec)


STRATEGIES = {
    "downsample": Strategy(downsample, by_windows=lambda _: _downsample_by_windows),
    "patch": Strategy(patch, by_windows=lambda _: _patch_by_windows),
    "whole": Strategy(whole),
}
