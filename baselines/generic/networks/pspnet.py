"""PSPNet: Zhao, Shi, Qi, Wang and Jia, CVPR 2017, arXiv 1612.01105.

48,946,510 parameters with ResNet-50 and 7 classes, 2,361,607 of them in the auxiliary head, which
inference does not run. segmentation-models-pytorch's network of this name ends at 1/8 before the
encoder's last two stages and keeps their weights unused; the paper's runs them dilated (section
3.3). Differs from the paper: the encoder's first convolution is ResNet's 7 x 7, and the pyramid's
coarsest level, one pixel an image, has no batch norm, which a batch of one would not bear."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BINS = (1, 2, 3, 6)
AUXILIARY_WEIGHT = 0.4
"""Of the loss after the last but one stage (section 4)."""
WIDTH = 512


class PSPNet(nn.Module):
    """A dilated encoder, pyramid pooling, an auxiliary head."""

    stride = 32

    def __init__(self, encoder: Any, classes: int, width: int = WIDTH) -> None:
        """`encoder`: of segmentation-models-pytorch; `width`: of the last convolution."""
        super().__init__()
        self.encoder = encoder
        fourth, fifth = encoder.out_channels[-2:]
        part = fifth // len(BINS)
        self.pyramid = nn.ModuleList(_conv(fifth, part, 1, norm=side > 1) for side in BINS)
        joined = fifth + part * len(BINS)
        self.head = _head(joined, width, classes)
        self.auxiliary = _head(fourth, width // 2, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> scores (N, K, H, W)."""
        return self._main(self.encoder(x)[-1], x)

    def heads(self, x: Tensor) -> list[tuple[float, Tensor]]:
        """The outputs in the loss."""
        *_, fourth, fifth = self.encoder(x)
        return [
            (1.0, self._main(fifth, x)),
            (AUXILIARY_WEIGHT, _resize(self.auxiliary(fourth), x)),
        ]

    def _main(self, fifth: Tensor, image: Tensor) -> Tensor:
        levels = [
            _resize(conv(F.adaptive_avg_pool2d(fifth, side)), fifth)
            for side, conv in zip(BINS, self.pyramid, strict=True)
        ]
        return _resize(self.head(torch.cat([fifth, *levels], 1)), image)


def _head(before: int, width: int, classes: int) -> nn.Sequential:
    return nn.Sequential(_conv(before, width, 3), nn.Dropout2d(0.1), nn.Conv2d(width, classes, 1))


def _conv(before: int, after: int, side: int, norm: bool = True) -> nn.Sequential:
    conv = nn.Conv2d(before, after, side, padding=side // 2, bias=not norm)
    return nn.Sequential(conv, *([nn.BatchNorm2d(after)] if norm else []), nn.ReLU(inplace=True))


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[-2:], mode="bilinear")
