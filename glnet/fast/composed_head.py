"""What is behind the smoothed maps of a feature pyramid, as stencils of the maps themselves.

Joining the levels, smoothing them once more and classifying them, or half an aggregation, is a
chain of convolutions; `glnet.fast.composed_convolution` makes one of each map's, so that the
fused map is not formed.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from glnet.fast.composed_convolution import Enlarged, Stencil, resizing
from glnet.model import FPN, LEVELS

Size = tuple[int, int]
FINEST = LEVELS - 1


class Last(NamedTuple):
    """The convolution behind the fused map."""

    weight: Tensor
    """(M, 4 S, 3, 3) or (M, 4 S, 1, 1)."""
    bias: Tensor | None = None


class Halves(NamedTuple):
    """One convolution of a feature pyramid."""

    own: Tensor
    lent: Tensor | None
    bias: Tensor


class End(nn.Module):
    """From the smoothed maps of every level to what is behind the fused map."""

    def __init__(
        self,
        fpn: FPN,
        last: Last,
        finest: tuple[Halves, Halves] | None,
        borrowing: type[Enlarged] | type[Stencil],
    ) -> None:
        """`finest`: the two smoothing convolutions of the finest level, where what lies between
        them and the end is asked for by nobody else."""
        super().__init__()
        join, width = fpn.smooth3, cast(nn.Conv2d, fpn.smooth2[0]).out_channels
        if join is None:
            own = [[part] for part in torch.split(last.weight, width, 1)]
            lent: list[list[Tensor]] = []
            constants = []
        else:
            parts = [[part, last.weight] for part in torch.split(join.weight, width, 1)]
            own, lent = parts[::2], parts[1::2]
            constants = [[_column(join.bias), last.weight]]
        # The finest level is enlarged no more, unless it is lent as a crop.
        self.own = nn.ModuleList(
            (Stencil if level == FINEST else Enlarged)(chain) for level, chain in enumerate(own)
        )
        self.lent = nn.ModuleList(
            (borrowing if level == FINEST else Enlarged)(chain) for level, chain in enumerate(lent)
        )
        self.constants = nn.ModuleList(Stencil(chain) for chain in constants)
        self.register_buffer("bias", last.bias)
        self.through = False
        if finest is None:
            return
        first, second = finest
        chain = [first.own, second.own, *own[FINEST]]
        # Nine taps twice, or more taps at once to fewer channels: what costs clearly less.
        multiplied = last.weight.shape[0] * (1 + sum(w.shape[-1] - 1 for w in chain)) ** 2
        if multiplied > 0.8 * 9 * (len(first.own) + len(second.own)):
            return
        self.through = True
        self.at_once_own = Stencil(chain)
        self.at_once_constants = nn.ModuleList(
            Stencil(chain)
            for chain in (
                [_column(first.bias), second.own, *own[FINEST]],
                [_column(second.bias), *own[FINEST]],
            )
        )
        if first.lent is not None and second.lent is not None:
            self.at_once_first = borrowing([first.lent, second.own, *own[FINEST]])
            self.at_once_second = borrowing([second.lent, *own[FINEST]])

    @property
    def least(self) -> int:
        """The smallest side of the finest map that `at_once` can take."""
        return self.at_once_own.least

    def constant(self, like: Tensor) -> Tensor:
        """What biases make of it: (1, M, H, W), or of a size that is as good."""
        one = like.new_ones(1, 1, *like.shape[-2:])
        out = sum((stencil(one) for stencil in self.constants), like.new_zeros(1, 1, 1, 1))
        return out if self.bias is None else out + cast(Tensor, self.bias)[:, None, None]

    def level(self, level: int, smooth2: Tensor, lent: Tensor | None, fine: Size) -> Tensor:
        """What one level's last maps, its own and the lent one, add: (N, M, H, W) at the finest
        size."""
        out = laid(self.own[level], smooth2, fine)
        if lent is not None:
            out += laid(self.lent[level], lent, size_of(smooth2), fine)
        return out

    def at_once(self, top_down: Tensor, given: Sequence[Tensor]) -> Tensor:
        """What the finest level adds, from the map before it is smoothed."""
        size = size_of(top_down)
        out: Tensor = self.at_once_own(top_down)
        one = out.new_ones(1, 1, *size)
        for stencil in self.at_once_constants:
            out += stencil(one)
        if len(given) > 3:
            out += laid(self.at_once_first, given[1], size)
            out += laid(self.at_once_second, given[2], size)
            out += laid(self.lent[FINEST], given[3], size)
        return out


def laid(stencil: nn.Module, map: Tensor, *sizes: Size) -> Tensor:
    """A stencil on a map; if it takes an enlarged one, one resized to each of `sizes` in turn."""
    if not isinstance(stencil, Enlarged):
        out: Tensor = stencil(map)
        return out
    matrices = []
    for axis in (0, 1):
        cells, matrix = size_of(map)[axis], None
        for size in sizes:
            one = resizing(cells, size[axis], map)
            cells, matrix = size[axis], one if matrix is None else one @ matrix
        matrices.append(cast(Tensor, matrix))
    enlarged: Tensor = stencil(map, *matrices)
    return enlarged


def size_of(map: Tensor) -> Size:
    """(H, W)."""
    return map.shape[-2], map.shape[-1]


def _column(bias: Tensor | None) -> Tensor:
    """A bias as a convolution of a map of ones."""
    assert bias is not None
    return bias[:, None, None, None]
