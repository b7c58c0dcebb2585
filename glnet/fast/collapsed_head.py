"""GLNet with collapsed heads: the same labels from the same weights at the cost of its backbones.

All that is behind the encoders is affine (`glnet.model`), so it can be worked out otherwise:

- What neighbouring convolutions do together, one does (`glnet.fast.composed_convolution`): from
  the finest maps, which cost most, it leads straight to the few channels of the scores.
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
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.tiling import resize
from glnet.fast.composed_convolution import (
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
from glnet.fast.composed_head import FINEST, End, Halves, Last, Size, laid, size_of
from glnet.fast.fold_batchnorm import fold
from glnet.model import FPN, LEVELS, Aggregation, Branch, GLNet, Lent, Maps, Output

BORROWERS = {"global_branch": "local_branch", "local_branch": "global_borrowing"}


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
    # As the mixing of `glnet.fast.composed_convolution.spread`.
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
        # At the finest level, memory counts more than multiplications; the image is seen but once.
        self.smooth1, self.smooth2 = (
            nn.ModuleList(
                Minimal(half.own, half.bias)
                if patches and level != FINEST
                else Stencil([half.own], half.bias)
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
        fine = size_of(features[FINEST])
        ends = {name: cast(End, end) for name, end in self.ends.items()}
        out = {name: end.constant(features[FINEST]) for name, end in ends.items()}
        maps = Maps([], [], [], [])
        for level in range(LEVELS):
            feature, features[level] = features[level], features[level].new_empty(0)
            size, given = size_of(feature), [kind[level] for kind in lent]
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
                last = given[3] if len(given) > 3 else None
                out[name] = out[name] + end.level(level, smooth2, last, fine)
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
            for cells, full, side in zip(size_of(given[1]), size_of(top_down), size, strict=True)
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


def _halves(conv: nn.Module, borrows: bool) -> Halves:
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    if not borrows:
        return Halves(conv.weight, None, conv.bias)
    own, lent = conv.weight.chunk(2, 1)
    return Halves(own, lent, conv.bias)
