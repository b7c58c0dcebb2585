"""VGG-16 (Simonyan and Zisserman, ICLR 2015, configuration D) without its classifier."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STAGES = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))
"""Channels of every convolution, in units of the first stage's; a pooling ends each stage."""
WIDTH = 64
"""Channels of the first stage as published."""


class VGG16(nn.Module):
    """The five stages, under torchvision's names, so that ImageNet weights fit at width 64."""

    def __init__(self, width: int, batch_norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self._stages: list[range] = []
        """Where each stage's convolutions stand among the layers, its pooling left out."""
        channels = 3
        for stage in STAGES:
            first = len(layers)
            for times in stage:
                layers.append(nn.Conv2d(channels, times * width, 3, padding=1))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(times * width))
                layers.append(nn.ReLU(inplace=True))
                channels = times * width
            self._stages.append(range(first, len(layers)))
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def stage(self, x: Tensor, number: int) -> Tensor:
        """The convolutions of stage 0 .. 4, at the size of its input."""
        for place in self._stages[number]:
            x = self.features[place](x)
        return x

    def pad_first(self, pixels: int) -> None:
        """Let the first convolution see `pixels` of zeros around the image instead of one."""
        first = self.features[0]
        assert isinstance(first, nn.Conv2d)
        first.padding = (pixels, pixels)


def pool(x: Tensor) -> Tensor:
    """Halve a map; an odd border counts, as in Caffe."""
    return F.max_pool2d(x, 2, ceil_mode=True)


def bilinear(classes: int, factor: int) -> Tensor:
    """Kernel (K, K, 2 f, 2 f) of a transposed convolution that enlarges each class's scores by
    `factor`."""
    place = torch.arange(2 * factor, dtype=torch.float32)
    ramp = 1 - (place - factor + 0.5).abs() / factor
    return torch.eye(classes)[:, :, None, None] * (ramp[:, None] * ramp)
