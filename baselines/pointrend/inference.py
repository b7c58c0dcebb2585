"""PointRend's inference: the whole image; scores are upsampled and corrected where they are least
certain."""

import torch
from torch import Tensor

from baselines.pointrend.model import PointRend, sample, uncertainty
from baselines.pointrend.spec import Spec
from bench.method import NetworkInput, Strategy
from bench.tiling import labels_of, resize


def scores(network: PointRend, x: Tensor, spec: Spec) -> Tensor:
    """A normalised image (1, 3, H, W) on the network's device -> scores (1, K, h, w), with the
    published two subdivisions of the image's size or, at sides that 4 does not divide, up to 3 px
    above it."""
    fine, coarse = network.maps(x)
    found = coarse
    for _ in range(spec.subdivisions):
        found = subdivided(network, found, fine, coarse, spec.subdivision_points)
    return found


def subdivided(
    network: PointRend, scores: Tensor, fine: Tensor, coarse: Tensor, count: int
) -> Tensor:
    """Scores (N, K, h, w) at twice their size, with the `count` least certain places predicted
    again from the fine map and the coarse scores, each at its own 1/4 of the image."""
    scores = resize(scores, (2 * scores.shape[-2], 2 * scores.shape[-1]))
    return corrected(network, scores, least_certain(scores, count), fine, coarse)


def least_certain(scores: Tensor, count: int) -> Tensor:
    """The `count` least certain cells of scores (N, K, h, w), or all if they are fewer: (N, P),
    counted row by row."""
    uncertain = uncertainty(scores).flatten(1)
    return uncertain.topk(min(count, uncertain.shape[1])).indices


def corrected(
    network: PointRend, scores: Tensor, cells: Tensor, fine: Tensor, coarse: Tensor
) -> Tensor:
    """Scores (N, K, h, w) whose `cells` (N, P) are predicted again, in place."""
    places = centres(cells, (scores.shape[-2], scores.shape[-1]))
    found = network.point(sample(fine, places), sample(coarse, places))  # (N, K, P)
    scores.flatten(2).scatter_(2, cells[:, None].expand_as(found), found)
    return scores


def centres(cells: Tensor, size: tuple[int, int]) -> Tensor:
    """Where the centres of cells (N, P), counted row by row, lie on a map of `size` (H, W):
    (N, P, 2), (x, y) each in 0..1."""
    height, width = size
    rows, columns = cells // width, cells % width
    return torch.stack([(columns + 0.5) / width, (rows + 0.5) / height], 2)


def whole(network: PointRend, image: Tensor, spec: Spec) -> Tensor:
    """The image at its own resolution in one piece."""
    found = scores(network, network.normalise(image[None]), spec)
    found = resize(found, (image.shape[-2], image.shape[-1]))
    return labels_of(found[0]).to(image.device)


STRATEGIES = {
    "whole": Strategy(
        whole,
        forward=scores,
        inputs=lambda spec, height, width: [NetworkInput.whole(height, width, (height, width))],
    )
}
