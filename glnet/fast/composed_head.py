"""The layers behind the smoothed maps of a feature pyramid, as composed convolutions of these maps.

Fusing the levels, smoothing the fused map and classifying it (or half an aggregation) is a chain of
convolutions; `glnet.fast.composed_convolution` composes one a map, so that the fused map is never
computed.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from glnet.fast.composed_convolution import (
    ComposedConvolution,
    Size,
    UpsampledConvolution,
    resizings,
    size_of,
)
from glnet.model import FPN, LEVELS

FINEST = LEVELS - 1


class LastConvolution(NamedTuple):
    """The convolution behind the fused map."""

    weight: Tensor
    """(M, 4 S, 3, 3) or (M, 4 S, 1, 1)."""
    bias: Tensor | None = None


class ConvolutionParts(NamedTuple):
    """One convolution of a feature pyramid."""

    own: Tensor
    received: Tensor | None
    bias: Tensor


class ComposedHead(nn.Module):
    """From the smoothed maps of every level to the output behind the fused map."""

    def __init__(
        self,
        fpn: FPN,
        last: LastConvolution,
        finest: tuple[ConvolutionParts, ConvolutionParts] | None,
        receiving: type[UpsampledConvolution] | type[ComposedConvolution],
    ) -> None:
        """`finest`: the two smoothing convolutions of the finest level, where no other module needs
        the maps behind them."""
        super().__init__()
        join, width = fpn.smooth3, cast(nn.Conv2d, fpn.smooth2[0]).out_channels
        if join is None:
            own = [[part] for part in torch.split(last.weight, width, 1)]
            received: list[list[Tensor]] = []
            constants = []
        else:
            parts = [[part, last.weight] for part in torch.split(join.weight, width, 1)]
            own, received = parts[::2], parts[1::2]
            constants = [[_column(join.bias), last.weight]]
        # The finest level needs no upsampling, unless it is received as a crop.
        self.own = nn.ModuleList(
            (ComposedConvolution if level == FINEST else UpsampledConvolution)(chain)
            for level, chain in enumerate(own)
        )
        self.received = nn.ModuleList(
            (receiving if level == FINEST else UpsampledConvolution)(chain)
            for level, chain in enumerate(received)
        )
        self.constants = nn.ModuleList(ComposedConvolution(chain) for chain in constants)
        self.register_buffer("bias", last.bias)
        self.through = False
        if finest is None:
            return
        first, second = finest
        chain = [first.own, second.own, *own[FINEST]]
        # Two convolutions of nine taps, or one of more taps to fewer channels: the cheaper one.
        multiplied = last.weight.shape[0] * (1 + sum(w.shape[-1] - 1 for w in chain)) ** 2
        if multiplied > 0.8 * 9 * (len(first.own) + len(second.own)):
            return
        self.through = True
        self.at_once_own = ComposedConvolution(chain)
        self.at_once_constants = nn.ModuleList(
            ComposedConvolution(chain)
            for chain in (
                [_column(first.bias), second.own, *own[FINEST]],
                [_column(second.bias), *own[FINEST]],
            )
        )
        if first.received is not None and second.received is not None:
            self.at_once_first = receiving([first.received, second.own, *own[FINEST]])
            self.at_once_second = receiving([second.received, *own[FINEST]])

    @property
    def least(self) -> int:
        """The smallest side of the finest map that `at_once` can take."""
        return self.at_once_own.least

    def constant(self, like: Tensor) -> Tensor:
        """The contribution of all biases: (1, M, H, W), or a size that broadcasts to it."""
        one = like.new_ones(1, 1, *like.shape[-2:])
        out = sum((stencil(one) for stencil in self.constants), like.new_zeros(1, 1, 1, 1))
        return out if self.bias is None else out + cast(Tensor, self.bias)[:, None, None]

    def level(self, level: int, smooth2: Tensor, received: Tensor | None, fine: Size) -> Tensor:
        """The contribution of one level's last maps, own and received: (N, M, H, W) at the finest
        size."""
        out = apply_composed(self.own[level], smooth2, fine)
        if received is not None:
            out += apply_composed(self.received[level], received, size_of(smooth2), fine)
        return out

    def at_once(self, top_down: Tensor, given: Sequence[Tensor]) -> Tensor:
        """The contribution of the finest level, from its map before smoothing."""
        size = size_of(top_down)
        out: Tensor = self.at_once_own(top_down)
        one = out.new_ones(1, 1, *size)
        for stencil in self.at_once_constants:
            out += stencil(one)
        if len(given) > 3:
            out += apply_composed(self.at_once_first, given[1], size)
            out += apply_composed(self.at_once_second, given[2], size)
            out += apply_composed(self.received[FINEST], given[3], size)
        return out


def apply_composed(stencil: nn.Module, map: Tensor, *sizes: Size) -> Tensor:
    """A composed convolution of a map that is first resized to each of `sizes` in turn, if it is
    one of an upsampled map."""
    if not isinstance(stencil, UpsampledConvolution):
        out: Tensor = stencil(map)
        return out
    enlarged: Tensor = stencil(map, *resizings(map, *sizes))
    return enlarged


def _column(bias: Tensor | None) -> Tensor:
    """A bias as a convolution of a map of ones."""
    assert bias is not None
    return bias[:, None, None, None]
