"""A synthetic image for measurements without a data set."""

import torch
from torch import Tensor
from torch.nn import functional as F

CELLS = (4, 32, 256)
"""Cells per side, by scale."""


def noise(side_px: int, seed: int = 0) -> Tensor:
    """A square image (3, H, W) uint8 of noise at several scales, so that all patches differ."""
    rng = torch.Generator().manual_seed(seed)
    image = torch.zeros(1, 3, side_px, side_px)
    for cells in CELLS:
        coarse = torch.rand(1, 3, cells, cells, generator=rng)
        image += F.interpolate(coarse, (side_px, side_px), mode="bilinear")
    return (image[0] / len(CELLS) * 255).to(torch.uint8)
