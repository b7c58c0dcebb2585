"""SGNet's inference: patch by patch, each with its surroundings at their own resolution."""

from collections.abc import Sequence

import torch
from torch import Tensor

from baselines.sgnet.model import CELL_PX, SGNet
from baselines.sgnet.spec import Spec
from bench.method import NetworkInput, by_scores
from bench.tiling import Box, Image, Size, cut, grid, relaxed, resize, scores_by_patches


def surroundings(box: Box, image: Size, spec: Spec) -> Box:
    """The area around a patch, moved inside an image of size (H, W)."""
    return relaxed(box, image, 0, (spec.context_px, spec.context_px))


def corners(boxes: Sequence[Box], around: Sequence[Box]) -> Tensor:
    """Top and left of each patch in its surroundings: (P, 2)."""
    pairs = zip(boxes, around, strict=True)
    return torch.tensor([[box.top - it.top, box.left - it.left] for box, it in pairs])


def enlarged(scores: Tensor, size: Size) -> Tensor:
    """Scores (P, K, h / 4, w / 4) of padded patches, at their pixels: (P, K, h, w)."""
    padded = (CELL_PX * scores.shape[-2], CELL_PX * scores.shape[-1])
    return resize(scores, padded)[..., : size[0], : size[1]]


def surround(network: SGNet, image: Image, spec: Spec) -> Tensor:
    """Sums of the patches' scores."""
    size = (image.shape[-2], image.shape[-1])

    def score(group: Sequence[Box]) -> Tensor:
        around = [surroundings(box, size, spec) for box in group]
        places = corners(group, around).to(network.mean.device)
        found = network(cut(image, group), cut(image, around), places).patch
        return enlarged(found, (group[0].height, group[0].width))

    return scores_by_patches(image, _boxes(spec, *size), spec.sub_batch, score, blend=spec.blend)


def _boxes(spec: Spec, height_px: int, width_px: int) -> list[Box]:
    return grid(height_px, width_px, spec.patch_px, spec.overlap_px)


def _inputs(spec: Spec, height_px: int, width_px: int) -> list[NetworkInput]:
    boxes = _boxes(spec, height_px, width_px)
    around = tuple(surroundings(box, (height_px, width_px), spec) for box in boxes)
    patches = NetworkInput.patches(boxes)
    return [patches, NetworkInput("surroundings", around, around[0][2:], context=True)]


STRATEGIES = {"surround": by_scores(surround, _inputs)}
