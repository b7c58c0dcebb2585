"""Patches whose positions are tensors.

Which patches are refined depends on values, which a strategy must not read on the host: patches of
one size are cut, cropped and put back by index arithmetic on their starts."""

from collections.abc import Sequence
from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor

from baselines.magnet.spec import Spec
from bench.tiling import Box, Size, starts

AHEAD = 2
"""Rows and columns beyond the box that the last sample of a crop may read."""


def boxes_of(size: Size, spec: Spec) -> list[Box]:
    """The patches of an image of size (H, W) at a later scale: as few as cover it, evenly laid, all
    of one size.

    As released (`truncated-grid`) their step is cut to whole pixels, so that the last rows or
    columns may lie in no patch; and columns come before rows.
    """
    patch = [min(pair) for pair in zip(size, spec.patch_size, strict=True)]
    if spec.quirk("truncated-grid"):
        tops, lefts = (_truncated(side, own) for side, own in zip(size, patch, strict=True))
        return [Box(top, left, *patch) for left in lefts for top in tops]
    tops, lefts = (starts(side, own, 0) for side, own in zip(size, patch, strict=True))
    return [Box(top, left, *patch) for top in tops for left in lefts]


def starts_of(boxes: Sequence[Box], device: torch.device) -> Tensor:
    """(P, 2): top and left of each box."""
    return torch.tensor([[box.top, box.left] for box in boxes], device=device)


def places(start: Tensor, size: Size, frame_px: int = 0) -> tuple[Tensor, Tensor]:
    """Rows (h, 1) and columns (w,) of a patch, without a frame: what indexes a map (..., H, W)."""
    rows, columns = (
        first + torch.arange(frame_px, max(side - frame_px, frame_px), device=start.device)
        for first, side in zip(start, size, strict=True)
    )
    return rows[:, None], columns


def align(
    map: Tensor, start: Tensor, extent: tuple[float, float], output: Size, displaced: bool = False
) -> Tensor:
    """A map's content in a box, at another size (RoIAlign: the mean of bilinear samples).

    Each cell of the output is the mean of as many samples an axis as the box has pixels a cell, at
    least one.

    Args:
        map: (K, H, W).
        start: (2,) top and left of the box in the map's pixels, whole or not.
        extent: its height and width.
        output: (h, w).
        displaced: as released: a sample's position is used as the index of a pixel, whose centre is
            half a pixel further, so that the crop is displaced by that against the patch.

    Returns:
        (K, h, w).
    """
    shift = 0.0 if displaced else -0.5
    down, across = (
        _samples(start[axis] + shift, extent[axis], output[axis], map.shape[axis + 1])
        for axis in (0, 1)
    )
    window = map[:, down.window[:, None], across.window]
    return _along(_along(window.mT, down).mT, across)


class _Samples(NamedTuple):
    """The samples of a crop along one axis."""

    window: Tensor
    """Lines of the map that are read."""
    before: Tensor
    """The line of the window before each sample,"""
    beyond: Tensor
    """and how far beyond it the sample lies, 0..1."""
    each: int
    """Samples a cell."""


def _samples(start: Tensor, extent: float, cells: int, side: int) -> _Samples:
    each = ceil(extent / cells)
    steps = torch.arange(cells * each, dtype=torch.float64, device=start.device) + 0.5
    at = (start + steps * (extent / (cells * each))).clamp(0, side - 1)
    before = at.floor().long()
    window = before[0] + torch.arange(ceil(extent) + AHEAD, device=start.device)
    return _Samples(window.clamp(max=side - 1), before - before[0], at - before, each)


def _along(map: Tensor, samples: _Samples) -> Tensor:
    """A window (K, H, W) sampled along its last axis: (K, H, w)."""
    low = map.index_select(-1, samples.before)
    high = map.index_select(-1, samples.before + 1)
    found = low.lerp_(high, samples.beyond.to(map.dtype))
    return found.view(*found.shape[:-1], -1, samples.each).mean(-1) if samples.each > 1 else found


def _truncated(side: int, patch: int) -> list[int]:
    count = ceil(side / patch)
    step = int(patch - (count * patch - side) / max(count - 1, 1))
    return [i * step for i in range(count)]
