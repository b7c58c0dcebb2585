"""Patches of the shallow stream: their grid, which of them are chosen, and their way to a map."""

from math import ceil, log
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from baselines.rue.model import Deep, resize
from baselines.rue.spec import Spec
from bench.errors import UserError
from bench.tiling import Size

CELL_PX = 8
"""Side of a cell of the shallow stream's map."""
TEMPERATURE = 0.7
"""By which the released code divides the entropy."""


class Grid(NamedTuple):
    """Patches side by side from the top left corner; row by row they have the numbers 0, 1, ..."""

    rows: int
    columns: int
    patch_px: Size
    patch_cells: Size
    """Size of a patch's map."""
    cells: Size
    """Size of the map on which both streams are fused."""

    def __len__(self) -> int:
        return self.rows * self.columns


def grid_of(size: Size, count: int, spec: Spec) -> Grid:
    """The patches of an image of size (H, W): about `count` along its longer side, each a whole
    number of cells, so that they cover the image and both streams are aligned; the last ones reach
    beyond it.

    With `truncated-grid`, as released: `count` along both sides, of H // count px, which leaves the
    last rows and columns unseen, while the deep stream's map covers the whole image.

    Raises:
        UserError: the released code crashes at this size.
    """
    height, width = size
    if not spec.quirk("truncated-grid"):
        side = CELL_PX * ceil(max(size) / (CELL_PX * count))
        cells = (ceil(height / CELL_PX), ceil(width / CELL_PX))
        own = (side // CELL_PX, side // CELL_PX)
        return Grid(ceil(height / side), ceil(width / side), (side, side), own, cells)
    patch = (height, width) if count == 1 else (height // count, height // count)
    if 0 in patch or any(side // px != count for side, px in zip(size, patch, strict=True)):
        raise UserError(
            f"The released RUE crashes on an image of {height} x {width} px: {count} patches of its "
            f"height / {count} do not fill both sides. Take `truncated-grid` out of the spec's "
            "`official`, or change `patches`."
        )
    own = (_halved(patch[0]), _halved(patch[1]))
    return Grid(count, count, patch, own, (count * own[0], count * own[1]))


def _halved(side: int) -> int:
    """A side after three strides of 2, each rounded up."""
    return ceil(ceil(ceil(side / 2) / 2) / 2)


def uncertainty(deep: Deep, size: Size, spec: Spec) -> Tensor:
    """The sum of the residual's sigmoid and the entropy's share of its largest value, in 0..2, at a
    size (h, w): (N, 1, h, w).

    With `unbounded-weights`, as released, the entropy is divided by 0.7, so that the sum exceeds 2
    where its largest value, the logarithm of the number of classes, exceeds 0.7.
    """
    largest = log(max(deep.logits.shape[1], 2))
    divisor = TEMPERATURE if spec.quirk("unbounded-weights") else largest
    return torch.sigmoid(resize(deep.residual, size)) + resize(deep.entropy, size) / divisor


def patch_scores(deep: Deep, weights: Tensor, grid: Grid, spec: Spec) -> Tensor:
    """The mean weight (N, 1, h, w) of each patch: (N, P).

    With `centre-scores`, as released, the uncertainty at nearly its centre alone.
    """
    if spec.quirk("centre-scores"):
        return uncertainty(deep, (grid.rows, grid.columns), spec).flatten(1)
    return F.avg_pool2d(weights, grid.patch_cells, ceil_mode=True).flatten(1)


def select(scores: Tensor, spec: Spec) -> Tensor:
    """Numbers (N, k) of the patches with the highest scores (N, P), in ascending order; with
    `select-all`, as in the released configuration, all of them."""
    count = scores.shape[1]
    if not spec.quirk("select-all"):
        count = max(round(spec.selected * count), 1)
    return scores.detach().topk(count).indices.sort().values


def cut(x: Tensor, grid: Grid, chosen: Tensor) -> Tensor:
    """The patches (N k, 3, h, w) of images (N, 3, H, W) with the numbers `chosen` (N, k); 0 beyond
    the image."""
    height, width = grid.patch_px
    down = max(grid.rows * height - x.shape[-2], 0)
    across = max(grid.columns * width - x.shape[-1], 0)
    if down or across:
        x = F.pad(x, (0, across, 0, down))
    windows = x.unfold(2, height, height).unfold(3, width, width).permute(0, 2, 3, 1, 4, 5)
    return windows[_places(grid, chosen)].flatten(0, 1)


def join(maps: Tensor, grid: Grid, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Maps (N k, C, h, w) of the patches with the numbers `chosen` (N, k), each at its place in
    (N, C, H', W'), and where there are any (N, 1, H', W'): 1, else 0; of size `grid.cells`."""
    images, (height, width) = len(chosen), grid.patch_cells
    places = _places(grid, chosen)
    joined = maps.new_zeros(images, grid.rows, grid.columns, *maps.shape[1:])
    joined[places] = maps.reshape(*chosen.shape, *maps.shape[1:])
    seen = maps.new_zeros(images, grid.rows, grid.columns)
    seen[places] = 1
    joined = joined.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
    seen = seen.repeat_interleave(height, 1).repeat_interleave(width, 2)[:, None]
    within = (..., slice(grid.cells[0]), slice(grid.cells[1]))
    return joined[within], seen[within]


def _places(grid: Grid, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Image, row and column of numbered patches (N, k)."""
    image = torch.arange(len(chosen), device=chosen.device)[:, None]
    return image, chosen // grid.columns, chosen % grid.columns
