"""ISDNet: a deep branch on a quarter of the image's sides, a shallow one on all of it (CVPR 2022).

The deep branch is a DeepLabV3 on the image at 1/4; the shallow one is the first half of STDC on
Laplacian residuals of the full image; relation-aware fusion joins them at 1/16 and at 1/8. Four
heads are used in training only: `auxiliary`, `restore`, `classify_16`, `classify_8`. Where the
paper's formulae are ambiguous, this follows the released code."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.isdnet.spec import Spec
from baselines.parts import Auxiliary, Classifier, Normalised, ResNet, Unit, small, stdc
from baselines.parts import resize as resize
from baselines.parts import shrunk as shrunk
from baselines.parts import start as start_parts

FUSED = 128  # channels of everything that is fused
HIDDEN = 64  # of a classifier
ROWS = 16  # a fused vector is 16 rows of 8
DEEP_SCALE = 4  # image sides / sides of the deep branch's input
ASPP_WIDTH = {18: 128, 50: 512}
DILATIONS = (12, 24, 36)


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
        small(self.classify)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, width, h, w)."""
        mean = self.pool(x.mean((-2, -1), keepdim=True)).expand(-1, -1, *x.shape[-2:])
        joined: Tensor = self.join(torch.cat([mean] + [branch(x) for branch in self.branches], 1))
        return joined

    def logits(self, feature: Tensor) -> Tensor:
        """Scores (N, K, h, w) of what `forward` gave."""
        scores: Tensor = self.classify(self.dropout(feature))
        return scores


class Shallow(nn.Module):
    """The first six parts of STDC-1, for the six channels of the residuals."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = stdc(2 * 3)


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
        context = self.context_out(resize(context, shallow.shape[-2:]))
        return Fused(shallow, context, self.smooth(shallow + context))


class Restorer(nn.Module):
    """From the deep feature back to the high frequencies of the image; training only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = Unit(FUSED, 64)
        self.conv2 = Unit(64, 64)
        self.conv3 = Unit(64, FUSED)
        self.colours = Classifier(FUSED, 3, HIDDEN)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 128, h, w) -> (N, 128, 16 h, 16 w) and residuals (N, 3, 16 h, 16 w)."""
        for conv, factor in ((self.conv1, 4), (self.conv2, 2), (self.conv3, 2)):
            x = conv(F.interpolate(x, scale_factor=factor))
        return x, self.colours(x)


class ISDNet(Normalised):
    """All parts; inference.py and training.py combine them."""

    blur: Tensor

    def __init__(self, spec: Spec, classes: int) -> None:
        super().__init__(spec.mean, spec.std)
        width = ASPP_WIDTH[spec.depth]
        self.backbone = ResNet(spec.depth)
        *_, third, last = self.backbone.channels
        self.pyramid = Pyramid(last, width, classes, spec.dropout)
        if width != FUSED:
            self.reduce = Unit(width, FUSED, 1)
        self.shallow = Shallow()
        self.fuse16 = Fusion(512)
        self.fuse8 = Fusion(256)
        self.dropout = nn.Dropout2d(spec.dropout)
        self.classify = Classifier(FUSED, classes, HIDDEN)
        self.auxiliary = Auxiliary(third, classes, spec.dropout)
        self.restore = Restorer()
        self.classify_16 = Classifier(FUSED, classes, HIDDEN)
        self.classify_8 = Classifier(FUSED, classes, HIDDEN)
        small(self.classify.out)
        if spec.quirk("small-norm"):
            # The released code's initialisation is meant for a classifier of one layer; with three,
            # batch norm's factor also starts near 0.
            small(self.classify.conv.conv)
            nn.init.normal_(self.classify.conv.bn.weight, std=0.01)
        row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
        kernel = torch.outer(row, row).repeat(3, 1, 1, 1)  # (3, 1, 5, 5)
        self.register_buffer("blur", kernel, persistent=False)

    def residuals(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Two levels of the Laplacian pyramid of (N, 3, H, W): at H x W and at half of it."""
        first, x = _level(x, self.blur)
        return first, _level(x, self.blur)[0]

    def deep_feature(self, small: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, h, w), a quarter of the image's sides -> the backbone's third stage and the
        pyramid's feature, both at 1/8 of it."""
        *_, third, last = self.backbone(small)
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


def build(spec: Spec, classes: int) -> ISDNet:
    """ISDNet with random weights: 17,780,554 parameters with ResNet-18 and 7 classes, 71,966,090
    with ResNet-50."""
    return ISDNet(spec, classes)


def start(network: ISDNet, encoder_state: Mapping[str, Tensor]) -> None:
    """Start weights for the backbone, the shallow branch (keys `features.*` of STDC-1), or both; its
    first kernel, made for three channels, is repeated for the other three.

    Raises:
        ValueError: there are weights for neither, or of another depth.
    """
    start_parts(network.backbone, network.shallow.parts, encoder_state)


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
