"""RUE: a low-resolution stream whose uncertainty says where a high-resolution one looks (CVPR 2025).

The deep stream is a ResNet-18 and a pooling pyramid on the image at 1/4. Its uncertainty chooses the
patches that the shallow stream, the first half of STDC, sees at full resolution; it weights the sum
of both; and it weights the loss. `auxiliary` is used in training only."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from timm.models.resnet import BasicBlock
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.rue.spec import Spec

DEEP_SCALE = 4  # image sides / sides of the deep stream's input
WIDTH = 128  # of the deep stream's feature
FUSED = 64  # channels of what is fused
POOLS = ((5, 2), (9, 4), (17, 8))  # kernel, stride


class Unit(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        _kaiming(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W'), sides divided by the stride and rounded up."""
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Backbone(nn.Module):
    """ResNet-18 with three 3 x 3 convolutions as stem ("v1c"), its last two stages dilated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True)),
            *(nn.Conv2d(32, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True)),
            *(nn.Conv2d(32, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)),
        )
        inputs = 64
        plan = zip((64, 128, 256, 512), (1, 2, 1, 1), (1, 1, 2, 4), strict=True)
        for number, (width, stride, dilation) in enumerate(plan, 1):
            shortcut = None
            if stride > 1 or inputs != width:
                conv = nn.Conv2d(inputs, width, 1, stride, bias=False)
                shortcut = nn.Sequential(conv, nn.BatchNorm2d(width))
            # The first block of a dilated stage still has the dilation of the stage before; of two
            # 3 x 3 convolutions only the first is dilated.
            before = max(dilation // 2, 1)
            first = BasicBlock(inputs, width, stride, shortcut, first_dilation=before)
            second = BasicBlock(width, width, first_dilation=dilation)
            self.add_module(f"layer{number}", nn.Sequential(first, second))
            inputs = width
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                _kaiming(module)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, 3, h, w) -> the maps of the four stages, at 1/4 and three times at 1/8."""
        x = F.max_pool2d(self.stem(x), 3, 2, 1)
        found = []
        for number in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{number}")(x)
            found.append(x)
        return found


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
        _small(self.classify)

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


class Chain(nn.Module):
    """STDC's block: four convolutions in a chain whose outputs lie side by side."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        widths = [half, outputs // 4, outputs // 8, outputs // 8]
        self.steps = nn.ModuleList(
            [Unit(inputs, half, 1), *(Unit(*pair) for pair in pairwise(widths))]
        )
        self.down = None
        if stride == 2:
            conv = nn.Conv2d(half, half, 3, 2, 1, groups=half, bias=False)
            _kaiming(conv)
            self.down = nn.Sequential(conv, nn.BatchNorm2d(half))  # no activation

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, h, w) -> (N, outputs, h', w'), sides halved and rounded up with a stride."""
        first = self.steps[0](x)
        found = [first]
        x = first
        if self.down is not None:
            x = self.down(first)
            found = [F.avg_pool2d(first, 3, 2, 1)]
            del first
        for step in self.steps[1:]:
            x = step(x)
            found.append(x)
        return torch.cat(found, 1)


class Shallow(nn.Module):
    """The first six parts of STDC-1, and the sum of its last two scales."""

    def __init__(self) -> None:
        super().__init__()
        halving = [Unit(3, 32, stride=2), Unit(32, 64, stride=2)]
        chains = [Chain(64, 256, 2), Chain(256, 256, 1), Chain(256, 512, 2), Chain(512, 512, 1)]
        self.parts = nn.ModuleList([*halving, *chains])
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


class Classifier(nn.Sequential):
    """A 3 x 3 convolution and a classifier of each place."""

    conv: Unit
    out: nn.Conv2d

    def __init__(self, classes: int, width: int = 32) -> None:
        parts = {"conv": Unit(FUSED, width), "out": nn.Conv2d(width, classes, 1)}
        super().__init__(OrderedDict(parts))


class Auxiliary(nn.Sequential):
    """A small fully convolutional head on the backbone's third stage; training only."""

    def __init__(self, inputs: int, classes: int, dropout: float) -> None:
        conv, classify = Unit(inputs, inputs // 4), nn.Conv2d(inputs // 4, classes, 1)
        _small(classify)
        parts = {"conv": conv, "dropout": nn.Dropout2d(dropout), "classify": classify}
        super().__init__(OrderedDict(parts))


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


class RUE(nn.Module):
    """All parts; inference.py and training.py combine them."""

    mean: Tensor
    std: Tensor

    def __init__(self, spec: Spec, classes: int) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.pyramid = Pyramid(512, classes, spec.dropout)
        self.residual = Residual()
        self.shallow = Shallow()
        self.reduce = Unit(WIDTH, FUSED, 1)
        self.classify = Classifier(classes)
        self.auxiliary = Auxiliary(256, classes, spec.dropout)
        if spec.quirk("idle-weights"):
            self.idle = nn.Conv2d(WIDTH, classes, 1)
        self.register_buffer("mean", torch.tensor(spec.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(3, 1, 1), persistent=False)

    def normalise(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 anywhere -> float on the network's device."""
        return (images.to(self.mean.device).to(self.mean.dtype) - self.mean) / self.std

    def deep(self, small: Tensor) -> Deep:
        """(N, 3, h, w), a quarter of the image's sides -> what the deep stream makes of it."""
        first, second, third, last = self.backbone(small)
        feature = self.pyramid(last)
        logits = self.pyramid.logits(feature)
        log_p = logits.detach().log_softmax(1)
        entropy = -(log_p.exp() * log_p).sum(1, keepdim=True)
        return Deep(third, feature, logits, entropy, self.residual(first, second))


def deep_input(x: Tensor, nearest: bool) -> Tensor:
    """(N, 3, H, W) -> (N, 3, H // 4, W // 4), at least one pixel.

    Args:
        nearest: as the released code does: every fourth pixel, with all its aliasing.
    """
    size = [max(side // DEEP_SCALE, 1) for side in x.shape[-2:]]
    if nearest:
        return F.interpolate(x, size, mode="nearest")
    return F.interpolate(x, size, mode="bilinear", antialias=True)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """(N, C, h, w) at another size (H, W), bilinear."""
    if x.shape[-2:] == torch.Size(size):
        return x
    return F.interpolate(x, list(size), mode="bilinear", align_corners=False)


def build(spec: Spec, classes: int) -> RUE:
    """RUE with random weights: 13,846,520 parameters with 7 classes, 13,847,423 with the unused ones
    of the released code."""
    return RUE(spec, classes)


def start(network: RUE, encoder_state: Mapping[str, Tensor]) -> None:
    """Start weights for the backbone, the shallow stream (keys `features.*` of STDC-1), or both.

    A ResNet-18 of torchvision's kind has another stem than the "v1c" of the paper; then the stem
    keeps its random weights.

    Raises:
        ValueError: there are weights for neither, or of another network.
    """
    backbone = network.backbone.state_dict()
    stem = {key for key in backbone if key.startswith("stem.")}
    given = {key: value for key, value in encoder_state.items() if key in backbone}
    shallow = {key: value for key, value in encoder_state.items() if key.startswith("features.")}
    if not given and not shallow:
        raise ValueError("RUE starts from a ResNet-18, from STDC-1 (`features.*`), or from both.")
    if given:
        lacking = backbone.keys() - stem - given.keys()
        if lacking or any(backbone[key].shape != value.shape for key, value in given.items()):
            raise ValueError("the start weights are of another ResNet than ResNet-18.")
        network.backbone.load_state_dict({**backbone, **given})
    if shallow:
        _start_shallow(network.shallow, shallow)


def _start_shallow(network: Shallow, given: Mapping[str, Tensor]) -> None:
    found = {}
    for key, value in network.parts.state_dict().items():
        theirs = key.replace(".steps.", ".conv_list.").replace(".down.", ".avd_layer.")
        found[key] = given.get(f"features.{theirs}", torch.empty(0))
        if found[key].shape != value.shape:
            raise ValueError(f"features.{theirs} is missing or is not STDC-1's.")
    network.parts.load_state_dict(found)


def _before(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """Batch norm and ReLU before a convolution without bias."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    _kaiming(conv)
    return nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), conv)


def _kaiming(conv: nn.Conv2d) -> None:
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")


def _small(conv: nn.Conv2d) -> None:
    nn.init.normal_(conv.weight, std=0.01)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
