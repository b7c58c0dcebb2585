"""Inference strategies of a single network: on the shrunk image, on patches, or on the whole image.

As in GLNet's strategies, full-resolution scores are on the host, except in `whole`."""

from collections.abc import Sequence

from torch import Tensor, nn

from baselines.generic.spec import Spec
from bench.method import NetworkInput, Strategy, by_scores
from bench.tiling import Box, Image, cut, grid, labels_of, scores_by_patches, shrink_image


def downsample(network: nn.Module, image: Image, spec: Spec) -> Tensor:
    """Scores of the whole image shrunk to a square of `size_px`."""
    small = shrink_image(image, (spec.size_px, spec.size_px))
    scores: Tensor = network(small[None])
    return scores.to(image.device)[0]


def patch(network: nn.Module, image: Image, spec: Spec) -> Tensor:
    """Scores of overlapping patches of `size_px`, summed where they overlap with the weights of
    `blend`."""

    def score(group: Sequence[Box]) -> Tensor:
        scores: Tensor = network(cut(image, group))
        return scores

    boxes = _boxes(spec, image.shape[-2], image.shape[-1])
    return scores_by_patches(image, boxes, spec.sub_batch, score, blend=spec.blend)


def whole(network: nn.Module, image: Tensor, spec: Spec) -> Tensor:
    """Scores of the image at its own resolution in one pass, on the network's device."""
    scores: Tensor = network(image[None])
    return scores[0]


def _boxes(spec: Spec, height_px: int, width_px: int) -> list[Box]:
    return grid(height_px, width_px, spec.size_px, spec.overlap_px)


STRATEGIES = {
    "downsample": by_scores(
        downsample,
        lambda spec, height, width: [
            NetworkInput.whole(height, width, (spec.size_px, spec.size_px))
        ],
    ),
    "patch": by_scores(
        patch,
        lambda spec, height, width: [NetworkInput.patches(_boxes(spec, height, width))],
    ),
    "whole": Strategy(
        lambda *arguments: labels_of(whole(*arguments)).to(arguments[1].device),
        scores=lambda *arguments: whole(*arguments).to(arguments[1].device),
        inputs=lambda spec, height, width: [NetworkInput.whole(height, width, (height, width))],
    ),
}
