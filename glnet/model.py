"""GLNet: a global and a local branch that share feature maps, and their aggregation.

CVPR 2019, arXiv 1905.06368, section 3. Each training phase has its own modules. No phase changes
the result of an earlier one, one checkpoint serves every strategy, and a strategy loads only the
modules that it uses:

    global_branch          phase global            takes the whole image; shares its maps
    local_branch           phase global-to-local   takes patches; receives crops of the global maps
    aggregation            phase global-to-local   scores of a patch from both branches
    global_borrowing       phase local-to-global   global branch that receives merged local maps
    aggregation_borrowing  phase local-to-global   scores of a patch from both branches
    local_alone            phase local             local branch that receives nothing: ablation

The network has no state besides its weights: shared maps are arguments and return values. No
convolution of the FPNs or of the aggregation is followed by an activation, so everything behind the
encoders is affine: a branch's own maps and the received maps are added, never multiplied
(docs/mosaic.md)."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glnet.spec import Spec

LEVELS = 4  # 1/32, 1/16, 1/8, 1/4 of the input: every list of maps runs from coarse to fine
SharedMaps = Sequence[Sequence[Tensor]]
"""Feature sharing: the first kinds of `Maps`, as many as the spec's `sharing` selects, with four
levels each, of any size."""


class Maps(NamedTuple):
    """The maps that a branch can share: four levels, coarse to fine, of each kind."""

    features: list[Tensor]
    """The encoder's c5, c4, c3, c2."""
    top_down: list[Tensor]
    """p5 .. p2 of the FPN, F channels (`ps0` in the official code)."""
    smooth1: list[Tensor]
    """After the first 3 x 3 convolution, F channels (`ps1`)."""
    smooth2: list[Tensor]
    """After the second, S channels (`ps2`)."""


class Output(NamedTuple):
    """Everything that a branch computes."""

    maps: Maps
    fused: Tensor
    """(N, 4 S, h, w): all levels at 1/4 (`ps3`)."""
    logits: Tensor
    """(N, K, h, w) at 1/4."""


class FPN(nn.Module):
    """Feature pyramid without normalisation or activation (section 3.2)."""

    def __init__(
        self,
        channels: Sequence[int],
        width: int,
        smooth_width: int,
        classes: int,
        receives: int,
    ) -> None:
        """
        Args:
            channels: of the four encoder maps, coarse to fine.
            receives: how many kinds of maps it receives from the other branch, 0 to 4; the
                convolutions that take a received map have twice the input channels.
        """
        super().__init__()
        self.receives = receives
        times = [2 if kind < receives else 1 for kind in range(len(Maps._fields))]
        fused = LEVELS * smooth_width
        self.lateral = nn.ModuleList(nn.Conv2d(times[0] * c, width, 1) for c in channels)
        self.smooth1 = nn.ModuleList(
            nn.Conv2d(times[1] * width, width, 3, padding=1) for _ in range(LEVELS)
        )
        self.smooth2 = nn.ModuleList(
            nn.Conv2d(times[2] * width, smooth_width, 3, padding=1) for _ in range(LEVELS)
        )
        self.smooth3 = nn.Conv2d(2 * fused, fused, 3, padding=1) if times[3] == 2 else None
        self.classify = nn.Conv2d(fused, classes, 3, padding=1)

    def forward(
        self,
        features: list[Tensor],
        received: SharedMaps = (),
        compute: "ComputePyramid | None" = None,
    ) -> Output:
        """Four encoder maps, coarse to fine, and the received maps -> maps, fused map, logits.

        Args:
            compute: called instead, for another implementation of the same function.
        """
        if compute:
            return compute(self, features, received)
        top_down: list[Tensor] = []
        for conv, own, other in zip(self.lateral, features, _kind(received, 0), strict=True):
            level = conv(_beside(own, other))
            if top_down:
                level = level + _resize(top_down[-1], level)
            top_down.append(level)
        smooth1 = [
            conv(_beside(own, other))
            for conv, own, other in zip(self.smooth1, top_down, _kind(received, 1), strict=True)
        ]
        smooth2 = [
            conv(_beside(own, other))
            for conv, own, other in zip(self.smooth2, smooth1, _kind(received, 2), strict=True)
        ]
        beside = [
            _beside(own, other) for own, other in zip(smooth2, _kind(received, 3), strict=True)
        ]
        fused = torch.cat(
            [_resize(level, beside[-1]) for level in beside], 1
        )  # (N, 4S or 8S, h, w)
        if self.smooth3 is not None:
            fused = self.smooth3(fused)  # (N, 4S, h, w)
        maps = Maps(features, top_down, smooth1, smooth2)
        return Output(maps, fused, self.classify(fused))


ComputePyramid = Callable[[FPN, list[Tensor], SharedMaps], Output]


class Branch(nn.Module):
    """An encoder and its FPN."""

    def __init__(self, spec: Spec, classes: int, receives: int) -> None:
        super().__init__()
        self.encoder = smp.encoders.get_encoder(spec.encoder, weights=None)
        channels = self.encoder.out_channels[: -LEVELS - 1 : -1]
        self.fpn = FPN(channels, spec.fpn_width, spec.smooth_width, classes, receives)
        if spec.fpn_std is not None:
            for module in self.fpn.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.normal_(module.weight, std=spec.fpn_std)
                    nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(
        self,
        image: Tensor,
        received: SharedMaps = (),
        sizes: Sequence[tuple[int, int]] = (),
        compute: ComputePyramid | None = None,
    ) -> Output:
        """(N, 3, H, W) normalised and, for a branch that receives maps, N of each.

        Args:
            sizes: to which the caller will resize the four levels' maps; not used here, but other
                implementations may skip what resizing drops.
            compute: see `FPN.forward`.
        """
        features: list[Tensor] = self.encoder(image)[-LEVELS:][::-1]
        output: Output = self.fpn(features, received, compute)
        return output


class Aggregation(nn.Module):
    """Scores of a patch from the fused maps of both branches: one 3 x 3 convolution (section
    3.2)."""

    def __init__(self, spec: Spec, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2 * LEVELS * spec.smooth_width, classes, 3, padding=1)
        if spec.fpn_std is not None:
            nn.init.normal_(self.conv.weight, std=spec.fpn_std)

    def forward(
        self, local: Tensor, shared: Tensor, compute: "ComputeAggregation | None" = None
    ) -> Tensor:
        """Fused maps (N, 4S, h, w) of patches and crops of the global fused map, of any size ->
        (N, K, h, w); `compute`: see `FPN.forward`."""
        if compute:
            return compute(self, local, shared)
        logits: Tensor = self.conv(_beside(local, shared))
        return logits


ComputeAggregation = Callable[[Aggregation, Tensor, Tensor], Tensor]


class GLNet(nn.Module):
    """The modules that the phases of a spec train; `glnet.inference` and `glnet.training` combine
    them."""

    global_branch: Branch
    local_branch: Branch
    aggregation: Aggregation
    global_borrowing: Branch
    aggregation_borrowing: Aggregation
    local_alone: Branch
    mean: Tensor
    std: Tensor

    def __init__(self, spec: Spec, classes: int) -> None:
        super().__init__()
        for phase in spec.phases:
            if phase == "global":
                self.global_branch = Branch(spec, classes, 0)
            elif phase == "global-to-local":
                self.local_branch = Branch(spec, classes, spec.shared_kinds)
                self.aggregation = Aggregation(spec, classes)
            elif phase == "local-to-global":
                self.global_borrowing = Branch(spec, classes, spec.shared_kinds)
                self.aggregation_borrowing = Aggregation(spec, classes)
            else:
                self.local_alone = Branch(spec, classes, 0)
        self.register_buffer("mean", torch.tensor(spec.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(3, 1, 1), persistent=False)

    def normalise(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 on any device -> normalised float on the network's device."""
        return (images.to(self.mean.device).to(self.mean.dtype) / 255 - self.mean) / self.std


def build(spec: Spec, classes: int) -> GLNet:
    """GLNet with random weights.

    Raises:
        KeyError or RuntimeError: segmentation-models-pytorch, or timm, has no such encoder.
    """
    return GLNet(spec, classes)


def start(network: nn.Module, encoder_state: Mapping[str, Tensor]) -> None:
    """Give every branch's encoder the same start weights (ImageNet's in the paper)."""
    for branch in network.children():
        if isinstance(branch, Branch):
            branch.encoder.load_state_dict(encoder_state)


def _kind(received: SharedMaps, kind: int) -> Sequence[Tensor | None]:
    return received[kind] if kind < len(received) else [None] * LEVELS


def _beside(own: Tensor, received: Tensor | None) -> Tensor:
    """[own, received] along the channels, the received map resized to the own one."""
    return own if received is None else torch.cat([own, _resize(received, own)], 1)


def _resize(map: Tensor, like: Tensor) -> Tensor:
    if map.shape[-2:] == like.shape[-2:]:
        return map
    return F.interpolate(map, like.shape[-2:], mode="bilinear", align_corners=False)
