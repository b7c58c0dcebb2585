"""Damaged masks that resemble a network's output: training inputs of CascadePSP's refiner."""

import numpy as np
import torch
from contourpy import contour_generator
from PIL import Image, ImageDraw
from torch import Generator, Tensor
from torch.nn import functional as F

from bench.optim import draw, uniform

CUT = 0.1
"""Share of a contour that is removed in one piece."""
KEPT = 0.1
"""Share of the remaining vertices that is kept."""
SIZES_PX = (3, 5, 7, 9)
"""Of the squares that a mask is dilated or eroded with."""
OVERLAP = (0.8, 1.0)
"""A mask is damaged until its IoU with the true one falls under a target drawn from here."""
MOST = 200
"""Limit of dilations and erosions of a mask."""


def damaged(mask: Tensor, rng: Generator) -> Tensor:
    """A mask (H, W) bool with coarse contours, dilated and eroded here and there at random."""
    seed = redrawn(mask, rng)
    target = uniform(rng, *OVERLAP)
    for _ in range(MOST):
        if overlap(seed, mask) <= target:
            break
        _grow_or_shrink(seed, rng)
    return seed


def overlap(one: Tensor, other: Tensor) -> float:
    """Intersection over union of two masks; 1 where both are empty."""
    union = int((one | other).sum())
    return int((one & other).sum()) / union if union else 1.0


def redrawn(mask: Tensor, rng: Generator) -> Tensor:
    """A mask (H, W) bool redrawn from a tenth of the vertices of its contours, after a tenth of each
    contour's length is removed."""
    inside = np.pad(mask.numpy(), 1)  # contours are closed at the edges, too
    height, width = inside.shape
    drawn = np.zeros((height, width), dtype=bool)
    for line in contour_generator(z=inside.astype(np.float32)).lines(0.5):
        vertices = np.asarray(line)[:-1]  # the last one is the first
        points = np.roll(vertices, -draw(len(vertices), rng), axis=0)
        points = points[round(CUT * len(points)) :]
        count = min(max(round(KEPT * len(points)), 3), len(points))
        chosen = torch.randperm(len(points), generator=rng)[:count].sort().values.numpy()
        polygon = Image.new("1", (width, height))
        corners = [(float(x), float(y)) for x, y in points[chosen]]
        ImageDraw.Draw(polygon).polygon(corners, fill=1)
        drawn ^= np.asarray(polygon)  # a contour inside another one is that of a hole
    return torch.from_numpy(drawn[1:-1, 1:-1].copy())


def _grow_or_shrink(mask: Tensor, rng: Generator) -> None:
    """Dilate or erode a mask, in place, inside a random box."""
    rows = sorted(draw(mask.shape[0] + 1, rng) for _ in range(2))
    columns = sorted(draw(mask.shape[1] + 1, rng) for _ in range(2))
    part = mask[rows[0] : rows[1], columns[0] : columns[1]]
    if not part.numel():
        return
    side = SIZES_PX[draw(len(SIZES_PX), rng)]
    sign = 1 if draw(2, rng) else -1
    pooled = F.max_pool2d(sign * part[None, None].float(), side, 1, side // 2)[0, 0]
    part.copy_(sign * pooled > 0.5)
