"""RUE: a low-resolution stream whose uncertainty says where a high-resolution one looks (CVPR 2025).

The deep stream is a ResNet-18 and a pooling pyramid on the image at 1/4. Its uncertainty chooses the
patches that the shallow stream, the first half of STDC, sees at full resolution; it weights the sum
of both; and it weights the loss. `auxiliary` is used in training only."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from baselines.parts import Auxiliary, Classifier, Normalised, ResNet, Unit, kaiming, small, stdc
from baselines.parts import resize as resize
from baselines.parts import shrunk as shrunk
from baselines.parts import start as start_parts
from baselines.rue.spec import Spec

DEEP_SCALE = 4  # image sides / sides of the deep stream's input
WIDTH = 128  # of the deep stream's feature
FUSED = 64  # channels of what is fused
POOLS = ((5, 2), (9, 4), (17, 8))  # kernel, stride


class Pyramid(nn.Module):
    """The deep aggregation pyramid pooling of DDRNet, and the deep stream's own classifier."""

    def __init__(self, inputs: int, classes: int, dropout: float) -> None:
        super().__init__()
        pools = [nn.Identity(), *(nn.AvgPool2d(k, stride, k // 2) for k, stride in POOLS)]
        pools.append(nn.AdaptiveAvgPool2d(1))
        self.scales = nn.ModuleList([nn.Sequential(p, *_before(inputs, WIDTH, 1)) for p in pools])
        self.processes = nn.ModuleList([_before(WIDTH, WIDTH, 3) for _ in pools[1:]])
        self.compression = _before(len(pools) * WIDTH, WIDTH, 1)
        self.shortcut = _before(inputs, WIDTH, 1)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(WIDTH, classes, 1)
        small(self.classify)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, 128, h, w)."""
        found = [self.scales[0](x)]
        for scale, process in zip(self.scales[1:], self.processes, strict=True):
            found.append(process(resize(scale(x), x.shape[-2:]) + found[-1]))
        joined: Tensor = self.compression(torch.cat(found, 1)) + self.shortcut(x)
        return joined

    def logits(self, feature: Tensor) -> Tensor:
        """Scores (N, K, h, w) of what `forward` gave."""
        scores: Tensor = self.classify(self.dropout(feature))
        return scores


class Residual(nn.Module):
    """The estimator's learnt part: how far fine features are from what coarse ones give."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = Unit(128, 64)
        self.out = nn.Conv2d(2, 1, 1)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """The backbone's first two stages (N, 64, h, w) and (N, 128, h', w') -> (N, 1, h, w), of any
        sign."""
        apart = (fine - self.conv(resize(coarse, fine.shape[-2:]))).abs()
        both = torch.cat([apart.mean(1, keepdim=True), apart.amax(1, keepdim=True)], 1)
        found: Tensor = self.out(both)
        return found


class Shallow(nn.Module):
    """The first six parts of STDC-1, and the sum of its last two scales."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = stdc()
        self.reduce16, self.reduce8 = Unit(512, FUSED, 1), Unit(256, FUSED, 1)

    def encode(self, x: Tensor, kept: list[Tensor] | None = None) -> Tensor:
        """Patches (N, 3, h, w) -> (N, 64, h', w') at 1/8, sides rounded up at each of three halvings.

        Args:
            kept: collects the patches and the map at 1/2, which the released code keeps alive to
                the end; else maps are freed after their last use.
        """
        eighth = x
        for number, part in enumerate(self.parts):
            if kept is not None and number <= 1:
                kept.append(x)
            x = part(x)
            eighth = x if number <= 3 else eighth
        fine: Tensor = self.reduce8(eighth)
        return fine + resize(self.reduce16(x), fine.shape[-2:])


class Deep(NamedTuple):
    """What the deep stream gives of images."""

    third: Tensor
    """The backbone's third stage (N, 256, h, w)."""
    feature: Tensor
    """(N, 128, h, w), at 1/32 of the image."""
    logits: Tensor
    """(N, K, h, w)."""
    entropy: Tensor
    """Of the logits' probabilities: (N, 1, h, w), detached, in 0 .. ln K."""
    residual: Tensor
    """(N, 1, 2 h, 2 w), of any sign, at 1/16 of the image."""


class RUE(Normalised):
    """All parts; inference.py and training.py combine them."""

    def __init__(self, spec: Spec, classes: int) -> None:
        super().__init__(spec.mean, spec.std)
        self.backbone = ResNet(18)
        self.pyramid = Pyramid(512, classes, spec.dropout)
        self.residual = Residual()
        self.shallow = Shallow()
        self.reduce = Unit(WIDTH, FUSED, 1)
        self.classify = Classifier(FUSED, classes, 32)
        self.auxiliary = Auxiliary(256, classes, spec.dropout)
        if spec.quirk("idle-weights"):
            self.idle = nn.Conv2d(WIDTH, classes, 1)

    def deep(self, small: Tensor) -> Deep:
        """(N, 3, h, w), a quarter of the image's sides -> what the deep stream makes of it."""
        first, second, third, last = self.backbone(small)
        feature = self.pyramid(last)
        logits = self.pyramid.logits(feature)
        log_p = logits.detach().log_softmax(1)
        entropy = -(log_p.exp() * log_p).sum(1, keepdim=True)
        return Deep(third, feature, logits, entropy, self.residual(first, second))


def build(spec: Spec, classes: int) -> RUE:
    """RUE with random weights: 13,846,520 parameters with 7 classes, 13,847,423 with the unused ones
    of the released code."""
    return RUE(spec, classes)


def start(network: RUE, encoder_state: Mapping[str, Tensor]) -> None:
    """Start weights for the backbone, the shallow stream (keys `features.*` of STDC-1), or both.

    Raises:
        ValueError: there are weights for neither, or of another network.
    """
    start_parts(network.backbone, network.shallow.parts, encoder_state)


def _before(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """Batch norm and ReLU before a convolution without bias."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    kaiming(conv)
    return nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), conv)
