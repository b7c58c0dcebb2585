"""CascadePSP: one network that refines a mask of a single class in three passes (CVPR 2020).

The refiner has 67,683,433 parameters; the base network, whose labels it refines, is a feature pyramid
with 26,116,807 (7 classes, ResNet-50)."""

from collections.abc import Mapping
from typing import Any

import segmentation_models_pytorch as smp
import torch
from timm.models.resnet import Bottleneck
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.cascadepsp.spec import Spec
from baselines.parts import Normalised, kaiming, start_encoder

STRIDE = 8  # of the refiner: its input sides are multiples
BASE_STRIDE = 32
BLOCKS = (3, 4, 6, 3)
POOLED = (1, 2, 3, 6)


class Encoder(nn.Module):
    """ResNet-50 for an image and three masks; its last two stages are dilated, not strided."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(6, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        plan = zip(BLOCKS, (1, 2, 4, 8), (1, 2, 1, 1), (1, 1, 2, 4), strict=True)
        for number, (count, growth, stride, dilation) in enumerate(plan, 1):
            outputs = growth * width
            conv = nn.Conv2d(inputs, 4 * outputs, 1, stride, bias=False)
            shortcut = nn.Sequential(conv, nn.BatchNorm2d(4 * outputs))
            # A stage's first block is never dilated.
            blocks = [Bottleneck(inputs, outputs, stride, shortcut)]
            inputs = 4 * outputs
            blocks += [Bottleneck(inputs, outputs, dilation=dilation) for _ in range(count - 1)]
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                kaiming(module)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, 6, H, W) -> maps of `width` channels at 1/2, before any norm, of 4 times as many at
        1/4, and of 32 times as many at 1/8."""
        half = self.conv1(x)
        x = F.max_pool2d(F.relu(self.bn1(half), inplace=True), 3, 2, 1)
        x = fourth = self.get_submodule("layer1")(x)
        for number in (2, 3, 4):
            x = self.get_submodule(f"layer{number}")(x)
        return half, fourth, x


class Pooling(nn.Module):
    """Pyramid pooling: a map beside its means over 1, 4, 9 and 36 cells."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList([nn.Conv2d(inputs, inputs, 1, bias=False) for _ in POOLED])
        self.join = nn.Conv2d((len(POOLED) + 1) * inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, outputs, h, w)."""
        maps = [
            _enlarged(level(F.adaptive_avg_pool2d(x, cells)), x)
            for level, cells in zip(self.levels, POOLED, strict=True)
        ]
        return F.relu(self.join(torch.cat([*maps, x], 1)), inplace=True)


class Up(nn.Module):
    """A map at twice its size, joined by a finer one: two residual pairs of convolutions."""

    def __init__(self, inputs: int, skipped: int, outputs: int) -> None:
        super().__init__()
        self.first = _pair(inputs + skipped, outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1)
        self.second = _pair(outputs, outputs)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(N, inputs, h, w) and (N, skipped, 2 h, 2 w) -> (N, outputs, 2 h, 2 w)."""
        x = _enlarged(x, skip)
        y = self.first(torch.cat([x, skip], 1))
        y = y + self.shortcut(x)
        del x
        found: Tensor = y + self.second(y)
        return found


class Refiner(nn.Module):
    """One pass: the refined mask at 1/8, at 1/4 and at full resolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = width // 2
        self.encoder = Encoder(width)
        self.pool = Pooling(32 * width, 16 * width)
        self.up1 = Up(16 * width, 4 * width, 8 * width)
        self.up2 = Up(8 * width, width, 4 * width)
        self.up3 = Up(4 * width, 3, hidden)
        self.score8 = _head(16 * width, hidden)
        self.score4 = _head(8 * width, hidden)
        self.score1 = _head(hidden + 3, hidden)

    def forward(self, x: Tensor, count: int) -> list[Tensor]:
        """The first `count` of the scores s8, s4 and s1, each (N, 1, H, W); above 0 is inside.

        Args:
            x: (N, 6, H, W): the normalised image and three masks in -1..1; 8 divides both sides.
        """
        image = x[:, :3]
        half, fourth, y = self.encoder(x)
        y = self.pool(y)
        scores = [_enlarged(self.score8(y), image)]
        if count > 1:
            y = self.up1(y, fourth)
            del fourth
            scores.append(_enlarged(self.score4(y), image))
        if count > 2:
            y = self.up2(y, half)
            del half
            y = self.up3(y, image)
            scores.append(self.score1(torch.cat([y, image], 1)))
        return scores


class Base(nn.Module):
    """The network whose labels are refined: a feature pyramid (Kirillov et al., CVPR 2019)."""

    def __init__(self, spec: Spec, classes: int) -> None:
        super().__init__()
        width = spec.base_width
        decoder: dict[str, Any] = {}
        if width is not None:
            decoder["decoder_pyramid_channels"] = width
            decoder["decoder_segmentation_channels"] = width // 2
        self.network = smp.FPN(spec.encoder, encoder_weights=None, classes=classes, **decoder)

    def forward(self, x: Tensor) -> Tensor:
        """A normalised image (N, 3, H, W) -> scores (N, K, H, W)."""
        height, width = x.shape[-2:]
        scores: Tensor = self.network(F.pad(x, (0, -width % BASE_STRIDE, 0, -height % BASE_STRIDE)))
        return scores[..., :height, :width]


class CascadePSP(Normalised):
    """Both networks; inference.py and training.py combine them."""

    def __init__(self, spec: Spec, classes: int) -> None:
        super().__init__(spec.mean, spec.std, divisor=255, dtype=torch.float32)
        self.classes = classes
        self.base = Base(spec, classes)
        self.refiner = Refiner(spec.width)

    def passes(
        self, image: Tensor, seed: Tensor, slots: tuple[Tensor, Tensor] | None = None
    ) -> list[list[Tensor]]:
        """The scores of each pass over one mask: [s8], [s8, s4], [s8, s4, s1].

        Args:
            image: normalised, (N, 3, H, W); 8 divides both sides.
            seed: the mask that is refined, (N, 1, H, W) in -1..1.
            slots: two better masks than the seed, in place of the first pass.
        """
        found = []
        if slots is None:
            found.append(self.refiner(torch.cat([image, seed, seed, seed], 1), 1))
            eighth = found[0][0].tanh()
            slots = (eighth, eighth)
        found.append(self.refiner(torch.cat([image, seed, *slots], 1), 2))
        slots = (found[-1][0].tanh(), found[-1][1].tanh())
        found.append(self.refiner(torch.cat([image, seed, *slots], 1), 3))
        return found


def build(spec: Spec, classes: int) -> CascadePSP:
    """The network of a spec with random weights.

    Raises:
        KeyError or RuntimeError: segmentation-models-pytorch, or timm, has no such encoder.
    """
    return CascadePSP(spec, classes)


def start(network: CascadePSP, encoder_state: Mapping[str, Tensor]) -> None:
    """Start weights for the base network's encoder and, where they are a ResNet-50's and its width
    is theirs, for the refiner's: its first kernel sees nothing of the three masks at first.

    Raises:
        ValueError: they are of another encoder than the base network's.
    """
    encoder = network.base.network.encoder
    refusal = "the start weights are of another encoder than the spec's `encoder`."
    start_encoder(encoder, encoder_state, refusal)
    refiner = network.refiner.encoder.state_dict()
    if refiner.keys() <= encoder_state.keys():
        first = encoder_state["conv1.weight"]
        found = {key: encoder_state[key] for key in refiner}
        found["conv1.weight"] = torch.cat([first, torch.zeros_like(first)], 1)
        if all(value.shape == refiner[key].shape for key, value in found.items()):
            network.refiner.encoder.load_state_dict(found)


def _pair(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs), nn.ReLU(inplace=True), nn.Conv2d(outputs, outputs, 3, padding=1),
    )  # fmt: skip


def _head(inputs: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, 1, 1)
    )


def _enlarged(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)
