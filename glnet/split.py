"""What a borrowing branch does, at half the cost and with gradients: how GLNet is trained.

`glnet.model` lays what is lent beside what a branch has seen itself, both at one size, and mixes
them with one convolution. The same is a sum of convolutions, one a map, and a map that is enlarged
before need not be: a convolution of an enlarged map is a 1 x 1 one of the map itself, to channels
for each tap of the kernel, and these are enlarged and added up. Lent crops have about 1/23 of the
positions of what they are laid beside; and as nothing is learnt behind them in the phase that they
come from, no gradient is worked out for them.

Unlike `glnet.collapsed` this forms every map that a loss reads, and leaves every weight a leaf, so
that a step's losses and gradients are those of `glnet.model`, up to rounding."""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.tiles import resize
from glnet.model import FPN, LEVELS, Aggregation, Lent, Maps, Output
from glnet.stencil import resizing, taps

Size = tuple[int, int]
Part = tuple[Tensor, Sequence[Size]]
"""A map, and the sizes that it is resized to, one after the other, before it reaches the last."""


def pyramid(fpn: FPN, features: list[Tensor], lent: Lent = ()) -> Output:
    """`FPN.forward`: four encoder maps, coarse to fine, and what is lent -> maps, fused map,
    logits."""
    maps = Maps(features, [], [], [])
    last: list[Part] = []
    for level, feature in enumerate(features):
        size, given = _size(feature), [kind[level] for kind in lent]
        seen = mixed(fpn.lateral[level], _beside(feature, given[:1]), size)
        if level:
            seen = seen + resize(maps.top_down[-1], size)
        maps.top_down.append(seen)
        for convs, kind, other in (
            (fpn.smooth1, maps.smooth1, given[1:2]),
            (fpn.smooth2, maps.smooth2, given[2:3]),
        ):
            seen = mixed(convs[level], _beside(seen, other), size)
            kind.append(seen)
        last += [(seen, ()), *((map, (size,)) for map in given[3:])]
    fine = _size(features[LEVELS - 1])
    if fpn.smooth3 is None:
        fused = torch.cat([resize(map, fine) for map, _ in last], 1)
    else:
        fused = mixed(fpn.smooth3, last, fine)
    return Output(maps, fused, fpn.classify(fused))


def aggregate(aggregation: Aggregation, local: Tensor, shared: Tensor) -> Tensor:
    """`Aggregation.forward`: fused maps of patches, and crops of the global one -> scores."""
    return mixed(aggregation.conv, _beside(local, [shared]), _size(local))


def mixed(conv: nn.Module, parts: Sequence[Part], size: Size) -> Tensor:
    """A convolution of maps that are resized to one size (H, W) and laid one beside the other:
    (N, M, H, W)."""
    conv = cast(nn.Conv2d, conv)
    weights = torch.split(conv.weight, [map.shape[1] for map, _ in parts], 1)
    out: Tensor | None = None
    enlarged: list[Tensor] = []
    for (map, sizes), weight in zip(parts, weights, strict=True):
        if _pays(map, weight, size):
            enlarged.append(of_enlarged(map, weight, *_resizings(map, [*sizes, size])))
            continue
        for one in (*sizes, size):
            map = resize(map, one)
        bias = conv.bias if out is None else None
        found = F.conv2d(map, weight, bias, padding=conv.padding)
        out = found if out is None else out.add_(found)
    assert out is not None, "what a branch has seen itself has the size that is asked for"
    for found in enlarged:
        out = out.add_(found)
    return out


def of_enlarged(map: Tensor, weight: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """A convolution, padded with zeros, of an enlarged map that is never formed.

    Args:
        map: (N, C, h, w), best in NHWC.
        weight: (M, C, k, k), k odd.
        rows: (H, h), columns: (W, w): the matrices that enlarge it.

    Returns:
        (N, M, H, W) in NHWC.
    """
    count, channels, height, width = map.shape
    kernel = weight.shape[-1]
    cells = map.permute(0, 2, 3, 1).reshape(-1, channels)
    across = taps(columns, kernel // 2).permute(1, 2, 0).flatten(1)  # (W, w taps)
    across = across.expand(count * height, -1, -1)
    wide = []
    for tap in range(kernel):
        mixing = weight[:, :, tap].permute(1, 2, 0).flatten(1)  # (C, taps M)
        line = (cells @ mixing).view(count * height, width * kernel, -1)
        wide.append(torch.bmm(across, line).view(count, height, -1))  # (N, h, W M)
    down = taps(rows, kernel // 2).transpose(0, 1).flatten(1)  # (H, taps h)
    tall = torch.bmm(down.expand(count, -1, -1), torch.cat(wide, 1))  # (N, H, W M)
    return tall.view(count, len(rows), len(columns), -1).permute(0, 3, 1, 2)


def _pays(map: Tensor, weight: Tensor, size: Size) -> bool:
    """Whether mixing before enlarging takes less than half of the multiplications."""
    (height, width), kernel = _size(map), weight.shape[-1]
    channels, lines = weight.shape[1], size[1]
    before = kernel * height * (kernel * width * (channels + lines) + size[0] * lines)
    return 2 * before < kernel**2 * size[0] * lines * channels


def _resizings(map: Tensor, sizes: Sequence[Size]) -> list[Tensor]:
    """The matrices (H, h) and (W, w) of bilinear resizing to each of `sizes` in turn."""
    found = []
    for axis in (0, 1):
        matrix = resizing(_size(map)[axis], sizes[0][axis], map)
        for one, other in pairwise(sizes):
            matrix = resizing(one[axis], other[axis], map) @ matrix
        found.append(matrix)
    return found


def _beside(own: Tensor, given: Sequence[Tensor]) -> list[Part]:
    return [(own, ()), *((map, ()) for map in given)]


def _size(map: Tensor) -> Size:
    return map.shape[-2], map.shape[-1]
