"""ISDNet: a deep branch on a quarter of the image's sides, a shallow one on all of it (CVPR 2022).

The deep branch is a DeepLabV3 on the image at 1/4; the shallow one is the first half of STDC on
Laplacian residuals of the full image; relation-aware fusion joins them at 1/16 and at 1/8. Four
heads are used in training only: `auxiliary`, `restore`, `classify_16`, `classify_8`. Where the
paper's formulae are ambiguous, this follows the released code."""

from collections import OrderedDict
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.isdnet.spec import Spec

FUSED = 128  # channels of everything that is fused
ROWS = 16  # a fused vector is 16 rows of 8
DEEP_SCALE = 4  # image sides / sides of the deep branch's input
LAYERS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}
ASPP_WIDTH = {18: 128, 50: 512}
DILATIONS = (12, 24, 36)


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
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W'), sides divided by the stride and rounded up."""
        x = self.bn(self.conv(x))
        return x if self.plain else F.relu(x, inplace=True)


class Backbone(nn.Module):
    """ResNet with three 3 x 3 convolutions as stem ("v1c"), its last two stages dilated."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        block = BasicBlock if depth == 18 else Bottleneck
        self.stem = nn.Sequential(
            *(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True)),
            *(nn.Conv2d(32, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True)),
            *(nn.Conv2d(32, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)),
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
            # The first block of a dilated stage still has the dilation of the stage before; of two
            # 3 x 3 convolutions only the first is dilated.
            before = max(dilation // 2, 1)
            blocks = [block(inputs, width, stride, shortcut, first_dilation=before)]
            blocks += [block(outputs, width, first_dilation=dilation) for _ in range(count - 1)]
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
            inputs = outputs
            self.channels.append(outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, h, w) -> the maps of stages 3 and 4, both at 1/8."""
        x = F.max_pool2d(self.stem(x), 3, 2, 1)
        for number in (1, 2, 3):
            x = self.get_submodule(f"layer{number}")(x)
        return x, self.get_submodule("layer4")(x)


class Pyramid(nn.Module):
    """Atrous spatial pyramid pooling, and the deep branch's own classifier."""

    def __init__(self, inputs: int, width: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.pool = Unit(inputs, width, 1)
        self.branches = nn.ModuleList(
            [Unit(inputs, width, 1)] + [Unit(inputs, width, 3, dilation=d) for d in DILATIONS]
        )
        self.join = Unit((2 + len(DILATIONS)) * width, width)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(width, classes, 1)
        _small(self.classify)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, width, h, w)."""
        mean = self.pool(x.mean((-2, -1), keepdim=True)).expand(-1, -1, *x.shape[-2:])
        joined: Tensor = self.join(torch.cat([mean] + [branch(x) for branch in self.branches], 1))
        return joined

    def logits(self, feature: Tensor) -> Tensor:
        """Scores (N, K, h, w) of what `forward` gave."""
        scores: Tensor = self.classify(self.dropout(feature))
        return scores


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
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
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
    """The first six parts of STDC-1, for the six channels of the residuals."""

    def __init__(self) -> None:
        super().__init__()
        halving = [Unit(6, 32, stride=2), Unit(32, 64, stride=2)]
        chains = [Chain(64, 256, 2), Chain(256, 256, 1), Chain(256, 512, 2), Chain(512, 512, 1)]
        self.parts = nn.ModuleList([*halving, *chains])


class Fused(NamedTuple):
    """The outputs of a fusion; all (N, 128, h, w)."""

    shallow: Tensor
    """The shallow map behind its gate."""
    context: Tensor
    """The context map behind its gate, at the shallow map's size."""
    joined: Tensor


class Fusion(nn.Module):
    """Relation-aware fusion: each map's channels are gated by how both maps' channels relate."""

    def __init__(self, shallow: int) -> None:
        super().__init__()
        self.shallow_conv = Unit(shallow, FUSED)
        self.context_conv = Unit(FUSED, FUSED)
        self.shallow_vector = Unit(FUSED, FUSED, 1, plain=True)
        self.context_vector = Unit(FUSED, FUSED, 1, plain=True)
        self.shallow_mlp = _perceptron()
        self.context_mlp = _perceptron()
        # 0: the gates start as plain channel attention, without gradients for the MLPs.
        self.shallow_gain = nn.Parameter(torch.zeros(1))
        self.context_gain = nn.Parameter(torch.zeros(1))
        self.context_out = Unit(FUSED, FUSED)
        self.smooth = Unit(FUSED, FUSED, plain=True)

    def forward(self, shallow: Tensor, context: Tensor) -> Fused:
        """A shallow map (N, C, h, w) and a context map (N, 128, h', w') -> maps at h x w."""
        shallow, context = self.shallow_conv(shallow), self.context_conv(context)
        one = self.shallow_vector(shallow.mean((-2, -1), keepdim=True))  # (N, 128, 1, 1)
        other = self.context_vector(context.mean((-2, -1), keepdim=True))
        rows = [vector.reshape(-1, ROWS, FUSED // ROWS) for vector in (one, other)]
        affinity = (rows[0] @ rows[1].transpose(1, 2)).flatten(1)  # (N, 16 * 16)
        shallow = shallow * _gate(one, self.shallow_mlp(affinity), self.shallow_gain)
        context = context * _gate(other, self.context_mlp(affinity), self.context_gain)
        context = self.context_out(resize(context, shallow))
        return Fused(shallow, context, self.smooth(shallow + context))


class Classifier(nn.Sequential):
    """From 128 to 64 channels, and to scores or to three colour channels."""

    conv: Unit
    out: nn.Conv2d

    def __init__(self, outputs: int, width: int = 64) -> None:
        parts = {"conv": Unit(FUSED, width), "out": nn.Conv2d(width, outputs, 1)}
        super().__init__(OrderedDict(parts))


class Restorer(nn.Module):
    """From the deep feature back to the high frequencies of the image; training only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = Unit(FUSED, 64)
        self.conv2 = Unit(64, 64)
        self.conv3 = Unit(64, FUSED)
        self.colours = Classifier(3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 128, h, w) -> (N, 128, 16 h, 16 w) and residuals (N, 3, 16 h, 16 w)."""
        for conv, factor in ((self.conv1, 4), (self.conv2, 2), (self.conv3, 2)):
            x = conv(F.interpolate(x, scale_factor=factor))
        return x, self.colours(x)


class Auxiliary(nn.Sequential):
    """A small fully convolutional head on the backbone's third stage; training only."""

    def __init__(self, inputs: int, classes: int, dropout: float) -> None:
        conv, classify = Unit(inputs, inputs // 4), nn.Conv2d(inputs // 4, classes, 1)
        _small(classify)
        parts = {"conv": conv, "dropout": nn.Dropout2d(dropout), "classify": classify}
        super().__init__(OrderedDict(parts))


class ISDNet(nn.Module):
    """All parts; inference.py and training.py combine them."""

    mean: Tensor
    std: Tensor
    blur: Tensor

    def __init__(self, spec: Spec, classes: int) -> None:
        super().__init__()
        width = ASPP_WIDTH[spec.depth]
        self.backbone = Backbone(spec.depth)
        *_, third, last = self.backbone.channels
        self.pyramid = Pyramid(last, width, classes, spec.dropout)
        if width != FUSED:
            self.reduce = Unit(width, FUSED, 1)
        self.shallow = Shallow()
        self.fuse16 = Fusion(512)
        self.fuse8 = Fusion(256)
        self.dropout = nn.Dropout2d(spec.dropout)
        self.classify = Classifier(classes)
        self.auxiliary = Auxiliary(third, classes, spec.dropout)
        self.restore = Restorer()
        self.classify_16, self.classify_8 = Classifier(classes), Classifier(classes)
        _small(self.classify.out)
        if spec.quirk("small-norm"):
            # The released code's initialisation is meant for a classifier of one layer; with three,
            # batch norm's factor also starts near 0.
            _small(self.classify.conv.conv)
            nn.init.normal_(self.classify.conv.bn.weight, std=0.01)
        row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
        kernel = torch.outer(row, row).repeat(3, 1, 1, 1)  # (3, 1, 5, 5)
        self.register_buffer("blur", kernel, persistent=False)
        self.register_buffer("mean", torch.tensor(spec.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(3, 1, 1), persistent=False)

    def normalise(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 anywhere -> float on the network's device."""
        return (images.to(self.mean.device).to(self.mean.dtype) - self.mean) / self.std

    def residuals(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Two levels of the Laplacian pyramid of (N, 3, H, W): at H x W and at half of it."""
        first, x = _level(x, self.blur)
        return first, _level(x, self.blur)[0]

    def deep_feature(self, small: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, h, w), a quarter of the image's sides -> the backbone's third stage and the
        pyramid's feature, both at 1/8 of it."""
        third, last = self.backbone(small)
        return third, self.pyramid(last)

    def context(self, feature: Tensor) -> Tensor:
        """The pyramid's feature as it is fused: (N, 128, h, w)."""
        return self.reduce(feature) if "reduce" in self._modules else feature

    def shallow_maps(self, x: Tensor, kept: list[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Residuals (N, 6, H, W) -> maps (N, 256, ..) at 1/8 and (N, 512, ..) at 1/16.

        Args:
            kept: collects the residuals and the maps at 1/2 and 1/4, which the released code keeps
                alive to the end; else they are freed after their last use.
        """
        eighth = x
        for number, part in enumerate(self.shallow.parts):
            if kept is not None and number <= 2:
                kept.append(x)
            x = part(x)
            eighth = x if number <= 3 else eighth
        return eighth, x


def deep_input(x: Tensor, nearest: bool) -> Tensor:
    """(N, 3, H, W) -> (N, 3, H // 4, W // 4), at least one pixel.

    Args:
        nearest: as the released code does: every fourth pixel, with all its aliasing.
    """
    size = [max(side // DEEP_SCALE, 1) for side in x.shape[-2:]]
    if nearest:
        return F.interpolate(x, size, mode="nearest")
    return F.interpolate(x, size, mode="bilinear", antialias=True)


def resize(x: Tensor, like: Tensor) -> Tensor:
    """(N, C, h, w) at the size of `like`, bilinear."""
    if x.shape[-2:] == like.shape[-2:]:
        return x
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)


def build(spec: Spec, classes: int) -> ISDNet:
    """ISDNet with random weights: 17,780,554 parameters with ResNet-18 and 7 classes, 71,966,090
    with ResNet-50."""
    return ISDNet(spec, classes)


def start(network: ISDNet, encoder_state: Mapping[str, Tensor]) -> None:
    """Start weights for the backbone, the shallow branch (keys `features.*` of STDC-1), or both.

    A ResNet of torchvision's kind has another stem than the "v1c" of the paper; then the stem keeps
    its random weights. STDC's first kernel, made for three channels, is repeated for the other
    three.

    Raises:
        ValueError: there are weights for neither, or of another depth.
    """
    backbone = network.backbone.state_dict()
    stem = {key for key in backbone if key.startswith("stem.")}
    given = {key: value for key, value in encoder_state.items() if key in backbone}
    shallow = {
        key.removeprefix("features."): value
        for key, value in encoder_state.items()
        if key.startswith("features.")
    }
    if not given and not shallow:
        raise ValueError("ISDNet starts from a ResNet, from STDC-1 (`features.*`), or from both.")
    if given:
        lacking = backbone.keys() - stem - given.keys()
        if lacking or any(backbone[key].shape != value.shape for key, value in given.items()):
            raise ValueError("the start weights are of another ResNet than the spec's `depth`.")
        network.backbone.load_state_dict({**backbone, **given})
    if shallow:
        _start_shallow(network.shallow, shallow)


def _start_shallow(network: Shallow, given: Mapping[str, Tensor]) -> None:
    own = network.parts.state_dict()
    found = {}
    for key, value in own.items():
        theirs = key.replace(".steps.", ".conv_list.").replace(".down.", ".avd_layer.")
        tensor = given.get(theirs, torch.empty(0))
        if key == "0.conv.weight" and tensor.shape[1:2] == (3,):
            tensor = torch.cat([tensor, tensor], 1)
        if tensor.shape != value.shape:
            raise ValueError(f"features.{theirs} is missing or is not STDC-1's.")
        found[key] = tensor
    network.parts.load_state_dict(found)


def _level(x: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
    """The residual of (N, 3, H, W), and the blurred image at half its size, sides rounded up."""
    down = _blurred(x, kernel)[..., ::2, ::2]
    up = x.new_zeros(*x.shape[:2], 2 * down.shape[-2], 2 * down.shape[-1])
    up[..., ::2, ::2] = down
    up = _blurred(up, 4 * kernel)
    if up.shape != x.shape:  # an odd side
        up = F.interpolate(up, x.shape[-2:], mode="nearest")
    return x - up, down


def _blurred(x: Tensor, kernel: Tensor) -> Tensor:
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, groups=3)


def _perceptron() -> nn.Sequential:
    """From an affinity to a channel's weight; the last ReLU is where it is used."""
    return nn.Sequential(
        nn.Linear(ROWS * ROWS, FUSED), nn.ReLU(inplace=True), nn.Linear(FUSED, FUSED)
    )


def _gate(vector: Tensor, message: Tensor, gain: Tensor) -> Tensor:
    return torch.sigmoid(vector + gain * F.relu(message)[..., None, None])  # (N, 128, 1, 1)


def _small(conv: nn.Conv2d) -> None:
    nn.init.normal_(conv.weight, std=0.01)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
