"""Parts of networks that several methods have: normalisation of images, the "v1c" ResNet, the first
half of STDC, small heads, and start weights. Imports torch and timm alone, so that a method's
`model.py` can be copied with this file."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn
from torch.nn import functional as F

LAYERS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}
STDC_WIDTHS = (32, 64, 256, 256, 512, 512)
"""Channels after each of the six parts: at 1/2, 1/4, twice at 1/8 and twice at 1/16."""


class Normalised(nn.Module):
    """A network that normalises images itself; checkpoints have neither mean nor deviation."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        divisor: int = 1,
        dtype: torch.dtype | None = None,
    ) -> None:
        """
        Args:
            mean, std: of the three channels, after the division.
            divisor: images, in 0..255, are divided by it.
            dtype: in which they are; None: that of the network.
        """
        super().__init__()
        self.divisor, self.dtype = divisor, dtype
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def normalise(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in 0..255 anywhere -> float on the network's device."""
        x = images.to(self.mean.device).to(self.dtype or self.mean.dtype)
        if self.divisor != 1:
            x = x / self.divisor
        x = x - self.mean  # by the same name, so that each map is freed
        return x / self.std


class Unit(nn.Module):
    """Convolution without bias, batch norm, and ReLU unless `plain`."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 3, plain: bool = False, **conv: Any
    ) -> None:
        """`conv`: stride and dilation."""
        super().__init__()
        padding = kernel // 2 * conv.get("dilation", 1)
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, bias=False, **conv)
        self.bn = nn.BatchNorm2d(outputs)
        self.plain = plain
        kaiming(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W'), sides divided by the stride and rounded up."""
        x = self.bn(self.conv(x))
        return x if self.plain else F.relu(x, inplace=True)


class ResNet(nn.Module):
    """ResNet with three 3 x 3 convolutions as stem ("v1c"), its last two stages dilated."""

    def __init__(self, depth: int, inputs: int = 3, all_dilated: bool = False) -> None:
        """
        Args:
            depth: 18 or 50.
            all_dilated: dilate every 3 x 3 convolution of a dilated stage. Else the first block
                still has the dilation of the stage before, and of two 3 x 3 convolutions of a
                block only the first is dilated.
        """
        super().__init__()
        block = BasicBlock if depth == 18 else Bottleneck
        self.stem = nn.Sequential(
            *(nn.Conv2d(inputs, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32)),
            *(nn.ReLU(inplace=True), nn.Conv2d(32, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32)),
            *(nn.ReLU(inplace=True), nn.Conv2d(32, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64)),
            nn.ReLU(inplace=True),
        )
        inputs = 64
        self.channels: list[int] = []
        plan = zip(LAYERS[depth], (64, 128, 256, 512), (1, 2, 1, 1), (1, 1, 2, 4), strict=True)
        for number, (count, width, stride, dilation) in enumerate(plan, 1):
            outputs = width * block.expansion
            shortcut = None
            if stride > 1 or inputs != outputs:
                conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
                shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))
            second = dilation if all_dilated else 1
            first = dilation if all_dilated else max(dilation // 2, 1)
            blocks = [block(inputs, width, stride, shortcut, dilation=second, first_dilation=first)]
            blocks += [
                block(outputs, width, dilation=second, first_dilation=dilation)
                for _ in range(count - 1)
            ]
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
            inputs = outputs
            self.channels.append(outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                kaiming(module)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, C, h, w) -> the maps of the four stages, at 1/4 and three times at 1/8."""
        x = F.max_pool2d(self.stem(x), 3, 2, 1)
        found = []
        for number in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{number}")(x)
            found.append(x)
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
            kaiming(conv)
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


def stdc(inputs: int = 3) -> nn.ModuleList:
    """The first six parts of STDC-1, of `STDC_WIDTHS` channels; every second one from the third on
    halves the sides."""
    widths = pairwise(STDC_WIDTHS[1:])
    chains = (Chain(*pair, stride) for pair, stride in zip(widths, (2, 1, 2, 1), strict=True))
    return nn.ModuleList([Unit(inputs, 32, stride=2), Unit(32, 64, stride=2), *chains])


class Classifier(nn.Sequential):
    """A 3 x 3 convolution and a classifier of each place."""

    conv: Unit
    out: nn.Conv2d

    def __init__(self, inputs: int, outputs: int, width: int) -> None:
        parts = {"conv": Unit(inputs, width), "out": nn.Conv2d(width, outputs, 1)}
        super().__init__(OrderedDict(parts))


class Auxiliary(nn.Sequential):
    """A small fully convolutional head on a backbone's third stage; training only."""

    def __init__(self, inputs: int, classes: int, dropout: float) -> None:
        conv, classify = Unit(inputs, inputs // 4), nn.Conv2d(inputs // 4, classes, 1)
        small(classify)
        parts = {"conv": conv, "dropout": nn.Dropout2d(dropout), "classify": classify}
        super().__init__(OrderedDict(parts))


def shrunk(x: Tensor, scale: int, nearest: bool) -> Tensor:
    """(N, 3, H, W) -> (N, 3, H // scale, W // scale), at least one pixel.

    Args:
        nearest: as the released codes of ISDNet and RUE do, with all its aliasing.
    """
    size = [max(side // scale, 1) for side in x.shape[-2:]]
    if nearest:
        return F.interpolate(x, size, mode="nearest")
    return F.interpolate(x, size, mode="bilinear", antialias=True)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """(N, C, h, w) at another size (H, W), bilinear."""
    if x.shape[-2:] == torch.Size(size):
        return x
    return F.interpolate(x, list(size), mode="bilinear", align_corners=False)


def start_encoder(encoder: nn.Module, given: Mapping[str, Tensor], refusal: str) -> None:
    """Start weights for an encoder, which may lack the last parts of the one that they are of.

    Raises:
        ValueError: with the text `refusal`: they are of another encoder.
    """
    own = encoder.state_dict()
    if any(key not in given or given[key].shape != own[key].shape for key in own):
        raise ValueError(refusal)
    encoder.load_state_dict({key: given[key] for key in own})


def start(backbone: ResNet, parts: nn.ModuleList, given: Mapping[str, Tensor]) -> None:
    """Start weights for a ResNet, the first parts of STDC (keys `features.*` of STDC-1), or both.

    A ResNet of torchvision's kind has another stem than "v1c"; then the stem keeps its random
    weights. STDC's first kernel, made for three channels, is repeated where there are six.

    Raises:
        ValueError: there are weights for neither, or of another network.
    """
    own = backbone.state_dict()
    stem = {key for key in own if key.startswith("stem.")}
    found = {key: value for key, value in given.items() if key in own}
    features = features_of(given)
    if not found and not features:
        raise ValueError("it starts from a ResNet, from STDC-1 (`features.*`), or from both.")
    if found:
        lacking = own.keys() - stem - found.keys()
        if lacking or any(own[key].shape != value.shape for key, value in found.items()):
            raise ValueError("the start weights are of another ResNet than its backbone.")
        backbone.load_state_dict({**own, **found})
    if features:
        start_stdc(parts, features)


def features_of(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a state dict has of STDC-1's features, by keys without `features.`."""
    start = "features."
    return {key.removeprefix(start): given[key] for key in given if key.startswith(start)}


def start_stdc(parts: nn.ModuleList, given: Mapping[str, Tensor]) -> None:
    """Start weights of STDC-1, by its keys without `features.`; see `start`."""
    found = {}
    for key, value in parts.state_dict().items():
        theirs = key.replace(".steps.", ".conv_list.").replace(".down.", ".avd_layer.")
        tensor = given.get(theirs, torch.empty(0))
        if key == "0.conv.weight" and value.shape[1] == 2 * tensor.shape[-3:][0]:
            tensor = torch.cat([tensor, tensor], 1)
        if tensor.shape != value.shape:
            raise ValueError(f"features.{theirs} is missing or is not STDC-1's.")
        found[key] = tensor
    parts.load_state_dict(found)


def kaiming(conv: nn.Conv1d | nn.Conv2d) -> None:
    """He initialisation by the number of outputs, without biases."""
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def small(conv: nn.Conv1d | nn.Conv2d) -> None:
    """A classifier's initial weights: N(0, 0.01), without biases."""
    nn.init.normal_(conv.weight, std=0.01)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
