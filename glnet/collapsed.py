"""GLNet with collapsed heads: the same labels from the same weights at the cost of its backbones.

All that is behind the encoders is affine (`glnet.model`), so it can be worked out otherwise:

- What neighbouring convolutions do together, one does (`glnet.stencil`): from the finest maps,
  which cost most, it leads straight to the few channels of the scores.
- A 1 x 1 convolution and bilinear resizing change places: maps that are enlarged, the coarser
  levels and all that is lent, are mixed at their own size, and only what they are mixed to is
  enlarged.
- The aggregation adds a patch's part and the whole image's. The first is formed where the fused map
  was, K channels for 4 S; of the second each of the 9 taps is formed once an image, and cropped.
- Merging reads a patch's maps at few places: there alone the finest are formed.

Modules take the place of those of the same name in `glnet.model.GLNet`, and give and take the same
but for the fused map, which no one needs to see: a local branch gives the patch's part of the
scores, K channels, and a global one what the aggregation's taps make of it, 9 K."""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.tiles import resize
from glnet.folding import fold
from glnet.model import FPN, LEVELS, Aggregation, Branch, GLNet, Lent, Maps, Output
from glnet.stencil import (
    Enlarged,
    Minimal,
    Stencil,
    inner,
    inside,
    mix,
    mixing_of,
    resizing,
    shrunk,
    spread,
    taps,
)

Size = tuple[int, int]
FINEST = LEVELS - 1
BORROWERS = {"global_branch": "local_branch", "local_branch": "global_borrowing"}


class Last(NamedTuple):
    """The convolution behind the fused map."""

    weight: Tensor
    """(M, 4 S, 3, 3) or (M, 4 S, 1, 1)."""
    bias: Tensor | None = None


def collapse(network: GLNet) -> nn.Module:
    """The network with collapsed heads. Its encoders are folded and used up; it is in eval mode for
    good. What a strategy does not need, and so is missing of GLNet, stays missing."""
    return Collapsed(network)


class Collapsed(nn.Module):
    """What `glnet.inference` calls as it calls a `GLNet`."""

    mean: Tensor
    std: Tensor
    normalise = GLNet.normalise

    def __init__(self, network: GLNet) -> None:
        super().__init__()
        self.register_buffer("mean", network.mean, persistent=False)
        self.register_buffer("std", network.std, persistent=False)
        parts = dict(network.named_children())
        for name, part in parts.items():
            if isinstance(part, Aggregation):
                self.add_module(name, CollapsedAggregation(part))
                continue
            branch = cast(Branch, part)
            fused = logits = None
            if name == "local_branch":
                fused = _local_part(parts.get("aggregation") or parts["aggregation_borrowing"])
            elif name == "global_borrowing":
                fused = _shared_part(parts["aggregation_borrowing"])
            else:
                logits = Last(branch.fpn.classify.weight, branch.fpn.classify.bias)
                if name == "global_branch" and "aggregation" in parts:
                    fused = _shared_part(parts["aggregation"])
            borrower = parts.get(BORROWERS.get(name, ""))
            self.add_module(
                name,
                CollapsedBranch(
                    branch,
                    fused,
                    logits,
                    borrower.fpn if isinstance(borrower, Branch) else None,
                    patches=name == "local_branch",
                ),
            )


def _local_part(aggregation: nn.Module) -> Last:
    return Last(cast(Aggregation, aggregation).conv.weight.chunk(2, 1)[0])


def _shared_part(aggregation: nn.Module) -> Last:
    # As the mixing of `glnet.stencil.spread`.
    return Last(mixing_of([cast(Aggregation, aggregation).conv.weight.chunk(2, 1)[1]]))


class CollapsedAggregation(nn.Module):
    """Scores of a patch: its own part, and the whole image's at the aggregation's taps."""

    bias: Tensor

    def __init__(self, aggregation: Aggregation) -> None:
        super().__init__()
        self.register_buffer("bias", aggregation.conv.bias)

    def forward(self, local: Tensor, shared: Tensor) -> Tensor:
        """(N, K, h, w) and crops (N, 9 K, any, any) -> (N, K, h, w)."""
        rows, columns = (
            taps(resizing(cells, side, shared), 1)
            for cells, side in zip(shared.shape[-2:], local.shape[-2:], strict=True)
        )
        return local + spread(shared, rows, columns) + self.bias[:, None, None]


class CollapsedBranch(nn.Module):
    """A folded encoder and its collapsed head."""

    def __init__(
        self,
        branch: Branch,
        fused: Last | None,
        logits: Last | None,
        borrower: FPN | None,
        patches: bool,
    ) -> None:
        """See `Head`."""
        super().__init__()
        self.encoder = fold(branch.encoder)
        self.head = Head(branch.fpn, fused, logits, borrower, patches)

    def forward(self, image: Tensor, lent: Lent = (), sizes: Sequence[Size] = ()) -> Output:
        """As `Branch`; where `sizes` are given, the finest maps may come at theirs."""
        image = image.contiguous(memory_format=torch.channels_last)
        features: list[Tensor] = self.encoder(image)[-LEVELS:][::-1]
        output: Output = self.head(features, lent, sizes)
        return output


class Halves(NamedTuple):
    """One convolution of a feature pyramid."""

    own: Tensor
    lent: Tensor | None
    bias: Tensor


class Head(nn.Module):
    """A feature pyramid, and what is behind its fused map."""

    def __init__(
        self,
        fpn: FPN,
        fused: Last | None,
        logits: Last | None,
        borrower: FPN | None,
        patches: bool,
    ) -> None:
        """`borrower`: whom its maps are lent to; `patches`: it sees patches, to which crops are
        lent, and whose maps are merged, and not the image."""
        super().__init__()
        borrowing = Enlarged if patches else Stencil
        self.merged = fpn.borrows == len(Maps._fields)
        steps = [
            [_halves(conv, fpn.borrows > kind) for conv in convs]
            for kind, convs in enumerate((fpn.lateral, fpn.smooth1, fpn.smooth2))
        ]
        self.lateral = nn.ModuleList(Stencil([half.own], half.bias) for half in steps[0])
        # At the finest level, memory counts more than multiplications.
        self.smooth1, self.smooth2 = (
            nn.ModuleList(
                (Stencil if level == FINEST else Minimal)([half.own], half.bias)
                for level, half in enumerate(kind)
            )
            for kind in steps[1:]
        )
        self.smooth1_lent, self.smooth2_lent = (
            nn.ModuleList(borrowing([half.lent]) for half in kind if half.lent is not None)
            for kind in steps[1:]
        )
        # What the borrower's lateral convolutions make of its maps is lent in their place.
        self.lent_on = nn.ModuleList(
            Stencil([half.lent])
            for conv in (borrower.lateral if borrower and borrower.borrows else ())
            if (half := _halves(conv, True)).lent is not None
        )
        first, second = steps[1][FINEST], steps[2][FINEST]
        if self.merged and patches:
            self.sampler = Sampler(first, second)
        self.ends = nn.ModuleDict()
        for name, last in (("fused", fused), ("logits", logits)):
            if last is not None:
                finest = None if borrower and not patches else (first, second)
                self.ends[name] = End(fpn, last, finest, borrowing)

    def forward(self, features: list[Tensor], lent: Lent, sizes: Sequence[Size]) -> Output:
        """Encoder maps, coarse to fine, which are used up, and lent maps of any size."""
        fine = _size(features[FINEST])
        ends = {name: cast(End, end) for name, end in self.ends.items()}
        out = {name: end.constant(features[FINEST]) for name, end in ends.items()}
        maps = Maps([], [], [], [])
        for level in range(LEVELS):
            feature, features[level] = features[level], features[level].new_empty(0)
            size, given = _size(feature), [kind[level] for kind in lent]
            if self.lent_on:
                seen = resize(feature, sizes[level]) if sizes else feature
                maps.features.append(self.lent_on[level](seen))
                del seen
            top_down = self.lateral[level](feature)
            del feature
            if level:
                top_down += resize(maps.top_down[-1], size)
            if given:
                top_down += resize(given[0], size)
            if level == FINEST and self._at_once(size, sizes):
                for name, end in ends.items():
                    out[name] = out[name] + end.at_once(top_down, given)
                if sizes and self.merged:
                    sampled = self.sampler(top_down, given, sizes[level])
                    for kind, one in zip(maps[1:], sampled, strict=True):
                        kind.append(one)
                break
            smooth1 = self.smooth1[level](top_down)
            if len(given) > 1:
                smooth1 += laid(self.smooth1_lent[level], given[1], size)
            smooth2 = self.smooth2[level](smooth1)
            if len(given) > 1:
                smooth2 += laid(self.smooth2_lent[level], given[2], size)
            for name, end in ends.items():
                out[name] = out[name] + end.level(level, smooth2, given, fine)
            for kind, one in zip(maps[1:], (top_down, smooth1, smooth2), strict=True):
                kind.append(one)
        nothing = torch.empty(0)
        return Output(maps, out.get("fused", nothing), out.get("logits", nothing))

    def _at_once(self, size: Size, sizes: Sequence[Size]) -> bool:
        """Whether the finest smoothed maps need not be formed."""
        for end in self.ends.values():
            if not cast(End, end).through or min(size) < cast(End, end).least:
                return False
        if not sizes or not self.merged:
            return True
        return all(inside(*pair, ring=1) for pair in zip(size, sizes[FINEST], strict=True))


class Sampler(nn.Module):
    """The finest maps where merging reads them: shrunk, and not formed before."""

    bias1: Tensor
    bias2: Tensor

    def __init__(self, first: Halves, second: Halves) -> None:
        """The two smoothing convolutions, which borrow."""
        super().__init__()
        assert first.lent is not None
        assert second.lent is not None
        for name, chain in (("smooth1", [first.own]), ("smooth2", [first.own, second.own])):
            # (rows, M, columns times C): what each row of the kernel adds.
            self.register_buffer(name, inner(chain).permute(2, 0, 3, 1).flatten(2).contiguous())
        self.register_buffer("bias1", first.bias)
        self.register_buffer("bias2", second.own.sum((2, 3)) @ first.bias + second.bias)
        self.register_buffer("first", mixing_of([first.lent]))
        self.register_buffer("both", mixing_of([first.lent, second.own]))
        self.register_buffer("second", mixing_of([second.lent]))

    def forward(self, top_down: Tensor, given: Sequence[Tensor], size: Size) -> list[Tensor]:
        """The top-down map and the two smoothed ones, each (N, any, *size)."""
        axes = [
            (cells, full, resizing(full, side, top_down))
            for cells, full, side in zip(_size(given[1]), _size(top_down), size, strict=True)
        ]

        def lent(mixing: Tensor | nn.Module, map: Tensor, n: int) -> Tensor:
            seen = [
                shrinking @ taps(resizing(cells, full, map), n) for cells, full, shrinking in axes
            ]
            return spread(mix(map, cast(Tensor, mixing)), *seen)

        smooth1 = lent(self.first, given[1], 1) + self.bias1[:, None, None]
        smooth2 = lent(self.both, given[1], 2) + lent(self.second, given[2], 1)
        smooth2 += self.bias2[:, None, None]
        centre = torch.empty(0)
        for tap, line in enumerate(shrunk(top_down.permute(0, 2, 3, 1), size[0], 1, 2)):
            near = torch.stack(list(shrunk(line, size[1], 2, 2)), 3)  # (N, h, w, taps, C)
            row2 = cast(Tensor, self.smooth2)[tap]
            smooth2 += F.linear(near.flatten(3), row2).permute(0, 3, 1, 2)
            if tap in (1, 2, 3):
                row1 = cast(Tensor, self.smooth1)[tap - 1]
                smooth1 += F.linear(near[:, :, :, 1:4].flatten(3), row1).permute(0, 3, 1, 2)
            if tap == 2:
                centre = near[:, :, :, 2].permute(0, 3, 1, 2)
        return [centre, smooth1, smooth2]


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

    def level(self, level: int, smooth2: Tensor, given: Sequence[Tensor], fine: Size) -> Tensor:
        """What one level's last maps add: (N, M, H, W) at the finest size."""
        out = laid(self.own[level], smooth2, fine)
        if len(given) > 3:
            out += laid(self.lent[level], given[3], _size(smooth2), fine)
        return out

    def at_once(self, top_down: Tensor, given: Sequence[Tensor]) -> Tensor:
        """What the finest level adds, from the map before it is smoothed."""
        size = _size(top_down)
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
        cells, matrix = _size(map)[axis], None
        for size in sizes:
            one = resizing(cells, size[axis], map)
            cells, matrix = size[axis], one if matrix is None else one @ matrix
        matrices.append(cast(Tensor, matrix))
    enlarged: Tensor = stencil(map, *matrices)
    return enlarged


def _halves(conv: nn.Module, borrows: bool) -> Halves:
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    if not borrows:
        return Halves(conv.weight, None, conv.bias)
    own, lent = conv.weight.chunk(2, 1)
    return Halves(own, lent, conv.bias)


def _column(bias: Tensor | None) -> Tensor:
    """A bias as a convolution of a map of ones."""
    assert bias is not None
    return bias[:, None, None, None]


def _size(map: Tensor) -> Size:
    return map.shape[-2], map.shape[-1]
