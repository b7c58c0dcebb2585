"""MagNet: a network applied at growing scales, and a small one that refines (CVPR 2021).

    backbone   phase backbone     an encoder and a feature pyramid; the same at every scale
    refine     phase refinement   one module for all later scales, or one for each

Input and output of each have the same size; `baselines.magnet.inference` combines them."""

from collections.abc import Mapping, Sequence
from typing import Any

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.magnet.spec import Spec
from baselines.parts import Normalised, resize

LEVELS = 4
SLOW = 0.01
"""Momentum of batch norm in bottlenecks and refinements; elsewhere it is PyTorch's 0.1."""
BOTTLENECK_NORMS = ("bn1", "bn2", "bn3")


class FPN(nn.Module):
    """Feature pyramid without normalisation or activation: all of it is affine."""

    def __init__(
        self, channels: Sequence[int], width: int, smooth_width: int, classes: int
    ) -> None:
        """Channels of the four encoder maps, coarse to fine."""
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.smooth1 = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in channels)
        self.smooth2 = nn.ModuleList(nn.Conv2d(width, smooth_width, 3, padding=1) for _ in channels)
        self.classify = nn.Conv2d(len(channels) * smooth_width, classes, 3, padding=1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Four encoder maps, coarse to fine -> logits (N, K, h, w) of the finest one's size."""
        top_down: list[Tensor] = []
        for conv, feature in zip(self.lateral, features, strict=True):
            level = conv(feature)
            if top_down:
                level = resize(top_down[-1], level.shape[-2:]) + level
            top_down.append(level)
        finest = top_down[-1].shape[-2:]
        smooth = [
            resize(second(first(level)), finest)
            for first, second, level in zip(self.smooth1, self.smooth2, top_down, strict=True)
        ]
        logits: Tensor = self.classify(torch.cat(smooth, 1))
        return logits


class Backbone(nn.Module):
    """An encoder and its FPN."""

    def __init__(self, spec: Spec, classes: int) -> None:
        super().__init__()
        self.encoder = _encoder(spec.encoder)
        channels = self.encoder.out_channels[: -LEVELS - 1 : -1]
        self.fpn = FPN(channels, spec.fpn_width, spec.smooth_width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) normalised -> logits (N, K, H, W)."""
        return resize(self.fpn(self.encoder(x)[-LEVELS:][::-1]), x.shape[-2:])


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 to four times the width, and a shortcut; at full resolution."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 4 width, H, W)."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return F.relu(y, inplace=True)


class Refinement(nn.Module):
    """New scores from two probability maps of the same area: the patch's and the earlier one. Few
    weights, but full resolution throughout."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.bn0 = nn.BatchNorm2d(2 * classes)
        self.conv1 = nn.Conv2d(2 * classes, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        half = width // 2
        self.residual = nn.Sequential(Bottleneck(width, half), Bottleneck(4 * half, half))
        self.seg_conv = nn.Conv2d(4 * half, classes, 1, bias=False)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = SLOW

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Two maps of probabilities (N, K, H, W) -> logits (N, K, H, W)."""
        x = self.bn0(torch.cat([first, second], 1))
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        logits: Tensor = self.seg_conv(self.residual(x))
        return logits


class MagNet(Normalised):
    """The modules that both phases train."""

    def __init__(self, spec: Spec, classes: int) -> None:
        super().__init__(spec.mean, spec.std, divisor=255)
        self.backbone = Backbone(spec, classes)
        self.refine = nn.ModuleList(
            Refinement(classes, spec.refine_width) for _ in range(spec.refinements)
        )


def build(spec: Spec, classes: int) -> MagNet:
    """MagNet with random weights.

    Raises:
        KeyError or RuntimeError: segmentation-models-pytorch, or timm, has no such encoder.
    """
    return MagNet(spec, classes)


def start(network: MagNet, encoder_state: Mapping[str, Tensor]) -> None:
    """Give the encoder its start weights (ImageNet's in the paper)."""
    network.backbone.encoder.load_state_dict(encoder_state)


def _encoder(name: str) -> Any:
    encoder = smp.encoders.get_encoder(name, weights=None)
    if name.startswith("resnet"):
        for path, module in encoder.named_modules():
            if "." in path and path.rsplit(".", 1)[-1] in BOTTLENECK_NORMS:
                assert isinstance(module, nn.BatchNorm2d)
                module.momentum = SLOW
    return encoder
