"""Training of a branch that receives shared features, at half the cost of `glnet.model`.

`glnet.model` concatenates a received map, resized, to a branch's own map and convolves both. This
equals a sum of two convolutions, one of each map. A convolution of an upsampled map in turn equals
a 1 x 1 convolution of the small map, to channels for each tap of the kernel, which are upsampled
and added. Received crops have about 1/23 of the positions of the map beside them. The modules that
they come from are frozen, so that they need no gradient.

Behind a frozen branch the fused map is not computed either: the aggregation acts on the branch's
last maps through composed kernels, which are computed in each step and pass their gradients on.

Unlike `glnet.fast.collapsed_head` this computes every other map that a loss reads, and every weight
stays a leaf: losses and gradients are those of `glnet.model`, up to rounding."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn import grad

from bench.tiling import resize
from glnet.fast.composed_convolution import Size, UpsampledConvolution, resizings, size_of, taps
from glnet.fast.composed_head import ComposedHead, LastConvolution
from glnet.model import FPN, LEVELS, Aggregation, Maps, Output, SharedMaps

Part = tuple[Tensor, Sequence[Size]]
"""A map, and the sizes to which it is resized, one after the other, before the final one."""


def pyramid(fpn: FPN, features: list[Tensor], received: SharedMaps = ()) -> Output:
    """`FPN.forward`: four encoder maps, coarse to fine, and the received maps -> maps, fused map,
    logits."""
    maps = levels(fpn, features, received).maps
    fine = size_of(features[LEVELS - 1])
    last: list[Part] = []
    for level, map in enumerate(maps.smooth2):
        last.append((map, ()))
        last += [(kind[level], (size_of(map),)) for kind in received[3:]]
    if fpn.smooth3 is None:
        fused = torch.cat([resize(map, fine) for map, _ in last], 1)
    else:
        fused = mixed(fpn.smooth3, last, fine)
    return Output(maps, fused, fpn.classify(fused))


def levels(fpn: FPN, features: list[Tensor], received: SharedMaps = ()) -> Output:
    """`FPN.forward` up to the smoothed maps: fused map and logits stay empty."""
    maps = Maps(features, [], [], [])
    for level, feature in enumerate(features):
        size, given = size_of(feature), [kind[level] for kind in received]
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
    nothing = features[0].new_empty(0)
    return Output(maps, nothing, nothing)


def aggregate(aggregation: Aggregation, local: Tensor, shared: Tensor) -> Tensor:
    """`Aggregation.forward`: fused maps of patches, and crops of the global one -> scores."""
    return mixed(aggregation.conv, _beside(local, [shared]), size_of(local))


class ComposedAggregation:
    """An aggregation behind a frozen local branch, for one optimiser step.

    It acts on the branch's last maps through kernels that are composed of its own and of those that
    fuse the maps. The kernels' gradients accumulate over the groups of patches, and `backward`
    passes them on to the aggregation."""

    def __init__(self, fpn: FPN, aggregation: Aggregation) -> None:
        local, self.shared = aggregation.conv.weight.chunk(2, 1)
        with torch.autocast(local.device.type, enabled=False):
            self.end = ComposedHead(
                fpn, LastConvolution(local, aggregation.conv.bias), None, UpsampledConvolution
            )
        self.kernels: list[tuple[Tensor, Tensor]] = []
        for module in self.end.modules():
            for name, composed in list(module.named_buffers(recurse=False)):
                if composed.requires_grad:
                    leaf = composed.detach().requires_grad_()
                    setattr(module, name, leaf)
                    self.kernels.append((composed, leaf))

    def scores(self, last: Sequence[Tensor], received: Sequence[Tensor], shared: Tensor) -> Tensor:
        """Scores (N, K, h, w) of patches.

        Args:
            last: the local branch's last maps, four levels; `received`: those that it received, if
                any.
            shared: crops (N, 4 S, any, any) of the global fused map.
        """
        fine = size_of(last[-1])
        out = self.end.constant(last[-1]) + _sum([self.shared], None, [(shared, ())], fine)
        for level, map in enumerate(last):
            out = out + self.end.level(level, map, received[level] if received else None, fine)
        return out

    def backward(self) -> None:
        """Continue from the kernels' gradients to the aggregation's."""
        met = [(one, leaf.grad) for one, leaf in self.kernels if leaf.grad is not None]
        kernels, gradients = zip(*met, strict=True)
        torch.autograd.backward(kernels, gradients)


def mixed(conv: nn.Module, parts: Sequence[Part], size: Size) -> Tensor:
    """A convolution of maps that are resized to one size (H, W) and concatenated: (N, M, H, W)."""
    conv = cast(nn.Conv2d, conv)
    weights = torch.split(conv.weight, [map.shape[1] for map, _ in parts], 1)
    return _sum(weights, conv.bias, parts, size)


def _sum(
    weights: Sequence[Tensor], bias: Tensor | None, parts: Sequence[Part], size: Size
) -> Tensor:
    out: Tensor | None = None
    enlarged: list[Tensor] = []
    for (map, sizes), weight in zip(parts, weights, strict=True):
        if _pays(map, weight, size):
            enlarged.append(of_enlarged(map, weight, *resizings(map, *sizes, size)))
            continue
        for one in (*sizes, size):
            map = resize(map, one)
        found = convolved(map, weight, bias if out is None else None)
        out = found if out is None else out.add_(found)
    for found in enlarged:
        out = found if out is None else out.add_(found)
    assert out is not None
    return out


def of_enlarged(map: Tensor, weight: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """A convolution, padded with zeros, of an upsampled map that is never computed.

    Args:
        map: (N, C, h, w), best in NHWC.
        weight: (M, C, k, k), k odd.
        rows: (H, h), columns: (W, w): the matrices that upsample it.

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


def convolved(map: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution of stride 1, padded to keep the size, of a map (N, C, H, W) in NHWC.

    The weights' gradient is computed on maps in NCHW where that is faster: on CPUs without AVX-512,
    for which oneDNN's kernel in NHWC has a third to half of the speed."""
    if _slow_in_nhwc(map, weight):
        found: Tensor = _WeightGradientInNCHW.apply(map, weight, bias)
        return found
    return F.conv2d(map, weight, bias, padding=weight.shape[-1] // 2)


class _WeightGradientInNCHW(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, map: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(map, weight)
        return F.conv2d(map, weight, bias, padding=weight.shape[-1] // 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        map, weight = ctx.saved_tensors
        padding = weight.shape[-1] // 2
        to_map = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            to_map = grad.conv2d_input(map.shape, weight, gradient, padding=padding)  # type: ignore[no-untyped-call]
        if ctx.needs_input_grad[2]:
            to_bias = gradient.sum((0, 2, 3))
        if ctx.needs_input_grad[1]:
            flat = gradient.contiguous()
            to_weight = grad.conv2d_weight(map.contiguous(), weight.shape, flat, padding=padding)  # type: ignore[no-untyped-call]
        return to_map, to_weight, to_bias


def _slow_in_nhwc(map: Tensor, weight: Tensor) -> bool:
    many = min(weight.shape[:2]) >= 64 and map.shape[-2] * map.shape[-1] >= 64 * 64
    return (
        many
        and weight.shape[-1] > 1
        and weight.requires_grad
        and torch.is_grad_enabled()
        and map.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.cpu.get_cpu_capability() == "AVX2"
    )


def _pays(map: Tensor, weight: Tensor, size: Size) -> bool:
    """Whether mixing channels before upsampling takes less than half of the multiplications."""
    (height, width), kernel = size_of(map), weight.shape[-1]
    channels, lines = weight.shape[1], size[1]
    before = kernel * height * (kernel * width * (channels + lines) + size[0] * lines)
    return 2 * before < kernel**2 * size[0] * lines * channels


def _beside(own: Tensor, given: Sequence[Tensor]) -> list[Part]:
    return [(own, ()), *((map, ()) for map in given)]
