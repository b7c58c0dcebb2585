"""GLNet with collapsed heads: the same labels from the same weights at the cost of its backbones.

Everything behind the encoders is affine (`glnet.model`), so that another order of operations gives
the same result:

- Consecutive convolutions become one (`glnet.fast.composed_convolution`): from the finest maps,
  which cost most, directly to the few channels of the scores.
- A 1 x 1 convolution and bilinear resizing commute: the coarser levels and all received maps are
  mixed at their own size, and only the result is upsampled.
- The aggregation adds a patch's part and the whole image's part. The first has K channels in place
  of the fused map's 4 S; the second is computed once an image for each of the 9 taps, and cropped.
- Merging reads a patch's finest maps at few positions: only these are computed.

The modules replace those of the same name in `glnet.model.GLNet`, with the same inputs and outputs
except the fused map, which is internal: a local branch returns the patch's part of the scores, K
channels, and a global one the contributions of the aggregation's taps, 9 K channels."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.tiling import resize
from bench.windows.weights import fold, to_nhwc
from glnet.fast.composed_convolution import (
    ComposedConvolution,
    Size,
    UpsampledConvolution,
    inner,
    inside,
    mix,
    mixing_of,
    resizing,
    shrunk,
    size_of,
    spread,
    taps,
)
from glnet.fast.composed_head import (
    FINEST,
    ComposedHead,
    ConvolutionParts,
    LastConvolution,
    apply_composed,
)
from glnet.model import FPN, LEVELS, Aggregation, Branch, GLNet, Maps, Output, SharedMaps

RECEIVERS = {"global_branch": "local_branch", "local_branch": "global_borrowing"}


def collapse(network: GLNet) -> nn.Module:
    """The network with collapsed heads, in eval mode. It takes over GLNet's encoders and folds
    them; modules that GLNet lacks, since a strategy does not need them, are left out."""
    return Collapsed(network)


class Collapsed(nn.Module):
    """A drop-in replacement of `GLNet` in `glnet.inference`."""

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
                logits = LastConvolution(branch.fpn.classify.weight, branch.fpn.classify.bias)
                if name == "global_branch" and "aggregation" in parts:
                    fused = _shared_part(parts["aggregation"])
            receiver = parts.get(RECEIVERS.get(name, ""))
            self.add_module(
                name,
                CollapsedBranch(
                    branch,
                    fused,
                    logits,
                    receiver.fpn if isinstance(receiver, Branch) else None,
                    patches=name == "local_branch",
                ),
            )


def _local_part(aggregation: nn.Module) -> LastConvolution:
    return LastConvolution(cast(Aggregation, aggregation).conv.weight.chunk(2, 1)[0])


def _shared_part(aggregation: nn.Module) -> LastConvolution:
    # As the mixing of `glnet.fast.composed_convolution.spread`.
    return LastConvolution(mixing_of([cast(Aggregation, aggregation).conv.weight.chunk(2, 1)[1]]))


class CollapsedAggregation(nn.Module):
    """Scores of a patch: its own part and the whole image's part, from the aggregation's taps."""

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
        fused: LastConvolution | None,
        logits: LastConvolution | None,
        receiver: FPN | None,
        patches: bool,
    ) -> None:
        """See `Head`."""
        super().__init__()
        self.encoder = branch.encoder
        weight = next(self.encoder.parameters())
        small = torch.zeros(1, 3, 64, 64, dtype=weight.dtype, device=weight.device)
        fold(self.encoder, lambda: self.encoder(small))
        to_nhwc(self.encoder)
        self.head = Head(branch.fpn, fused, logits, receiver, patches)

    def forward(
        self, image: Tensor, received: SharedMaps = (), sizes: Sequence[Size] = ()
    ) -> Output:
        """As `Branch`; with `sizes`, the finest maps may already have the size given for them."""
        image = image.contiguous(memory_format=torch.channels_last)
        features: list[Tensor] = self.encoder(image)[-LEVELS:][::-1]
        output: Output = self.head(features, received, sizes)
        return output


class Head(nn.Module):
    """A feature pyramid and the layers behind its fused map."""

    def __init__(
        self,
        fpn: FPN,
        fused: LastConvolution | None,
        logits: LastConvolution | None,
        receiver: FPN | None,
        patches: bool,
    ) -> None:
        """
        Args:
            receiver: the pyramid with which its maps are shared.
            patches: its input are patches, which receive crops and whose maps are merged; else the
                whole image.
        """
        super().__init__()
        receiving = UpsampledConvolution if patches else ComposedConvolution
        self.merged = fpn.receives == len(Maps._fields)
        steps = [
            [_parts_of(conv, fpn.receives > kind) for conv in convs]
            for kind, convs in enumerate((fpn.lateral, fpn.smooth1, fpn.smooth2))
        ]
        self.lateral = nn.ModuleList(
            ComposedConvolution([half.own], half.bias) for half in steps[0]
        )
        self.smooth1, self.smooth2 = (
            nn.ModuleList(ComposedConvolution([half.own], half.bias) for half in kind)
            for kind in steps[1:]
        )
        self.smooth1_received, self.smooth2_received = (
            nn.ModuleList(receiving([half.received]) for half in kind if half.received is not None)
            for kind in steps[1:]
        )
        # In place of its encoder's maps, the output of the receiver's lateral convolutions is shared.
        self.passed_on = nn.ModuleList(
            ComposedConvolution([half.received])
            for conv in (receiver.lateral if receiver and receiver.receives else ())
            if (half := _parts_of(conv, True)).received is not None
        )
        first, second = steps[1][FINEST], steps[2][FINEST]
        if self.merged and patches:
            self.sampler = Sampler(first, second)
        self.heads = nn.ModuleDict()
        for name, last in (("fused", fused), ("logits", logits)):
            if last is not None:
                finest = None if receiver and not patches else (first, second)
                self.heads[name] = ComposedHead(fpn, last, finest, receiving)

    def forward(
        self, features: list[Tensor], received: SharedMaps, sizes: Sequence[Size]
    ) -> Output:
        """Encoder maps, coarse to fine, which are released on the way, and received maps of any
        size."""
        fine = size_of(features[FINEST])
        heads = {name: cast(ComposedHead, head) for name, head in self.heads.items()}
        out = {name: head.constant(features[FINEST]) for name, head in heads.items()}
        maps = Maps([], [], [], [])
        for level in range(LEVELS):
            feature, features[level] = features[level], features[level].new_empty(0)
            size, given = size_of(feature), [kind[level] for kind in received]
            if self.passed_on:
                resized = resize(feature, sizes[level]) if sizes else feature
                maps.features.append(self.passed_on[level](resized))
                del resized
            top_down = self.lateral[level](feature)
            del feature
            if level:
                top_down += resize(maps.top_down[-1], size)
            if given:
                top_down += resize(given[0], size)
            if level == FINEST and self._at_once(size, sizes):
                for name, head in heads.items():
                    out[name] = out[name] + head.at_once(top_down, given)
                if sizes and self.merged:
                    sampled = self.sampler(top_down, given, sizes[level])
                    for kind, one in zip(maps[1:], sampled, strict=True):
                        kind.append(one)
                break
            smooth1 = self.smooth1[level](top_down)
            if len(given) > 1:
                smooth1 += apply_composed(self.smooth1_received[level], given[1], size)
            smooth2 = self.smooth2[level](smooth1)
            if len(given) > 1:
                smooth2 += apply_composed(self.smooth2_received[level], given[2], size)
            for name, head in heads.items():
                last = given[3] if len(given) > 3 else None
                out[name] = out[name] + head.level(level, smooth2, last, fine)
            for kind, one in zip(maps[1:], (top_down, smooth1, smooth2), strict=True):
                kind.append(one)
        nothing = torch.empty(0)
        return Output(maps, out.get("fused", nothing), out.get("logits", nothing))

    def _at_once(self, size: Size, sizes: Sequence[Size]) -> bool:
        """Whether the finest smoothed maps need not be computed."""
        for head in self.heads.values():
            if not cast(ComposedHead, head).through or min(size) < cast(ComposedHead, head).least:
                return False
        if not sizes or not self.merged:
            return True
        return all(inside(*pair, ring=1) for pair in zip(size, sizes[FINEST], strict=True))


class Sampler(nn.Module):
    """The finest maps at the positions that merging reads: computed at the merged size only."""

    bias1: Tensor
    bias2: Tensor

    def __init__(self, first: ConvolutionParts, second: ConvolutionParts) -> None:
        """The two smoothing convolutions, which have received parts."""
        super().__init__()
        assert first.received is not None
        assert second.received is not None
        for name, chain in (("smooth1", [first.own]), ("smooth2", [first.own, second.own])):
            # (rows, M, columns times C): the contribution of each row of the kernel.
            self.register_buffer(name, inner(chain).permute(2, 0, 3, 1).flatten(2).contiguous())
        self.register_buffer("bias1", first.bias)
        self.register_buffer("bias2", second.own.sum((2, 3)) @ first.bias + second.bias)
        self.register_buffer("first", mixing_of([first.received]))
        self.register_buffer("both", mixing_of([first.received, second.own]))
        self.register_buffer("second", mixing_of([second.received]))

    def forward(self, top_down: Tensor, given: Sequence[Tensor], size: Size) -> list[Tensor]:
        """The top-down map and the two smoothed ones, each (N, any, *size)."""
        axes = [
            (cells, full, resizing(full, side, top_down))
            for cells, full, side in zip(size_of(given[1]), size_of(top_down), size, strict=True)
        ]

        def received(mixing: Tensor | nn.Module, map: Tensor, n: int) -> Tensor:
            resized = [
                shrinking @ taps(resizing(cells, full, map), n) for cells, full, shrinking in axes
            ]
            return spread(mix(map, cast(Tensor, mixing)), *resized)

        smooth1 = received(self.first, given[1], 1) + self.bias1[:, None, None]
        smooth2 = received(self.both, given[1], 2) + received(self.second, given[2], 1)
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


def _parts_of(conv: nn.Module, receives: bool) -> ConvolutionParts:
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    if not receives:
        return ConvolutionParts(conv.weight, None, conv.bias)
    own, received = conv.weight.chunk(2, 1)
    return ConvolutionParts(own, received, conv.bias)
