"""ENet: Paszke, Chaurasia, Kim and Culurciello, 2016, arXiv 1606.02147.

361,814 parameters with 7 classes (the paper: .37 M). Layers as in its Table 1: `asymmetric` is a
5 x 1 and a 1 x 5 convolution, every convolution but the last is without bias and followed by batch
norm and PReLU, and the decoder puts values back where the encoder's poolings took them from."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 16
_MIDDLE: tuple[dict[str, int], ...] = (
    {},
    {"dilation": 2},
    {"asymmetric": 5},
    {"dilation": 4},
    {},
    {"dilation": 8},
    {"asymmetric": 5},
    {"dilation": 16},
)
"""Bottlenecks 2.1 to 2.8, and 3.1 to 3.8."""


class ENet(nn.Module):
    """An early and deep encoder, a small decoder."""

    stride = 8

    def __init__(self, classes: int, width: int = WIDTH) -> None:
        """`width`: channels of the initial block; the encoder has 4 and 8 times as many."""
        super().__init__()
        self.initial = nn.Conv2d(3, width - 3, 3, stride=2, padding=1, bias=False)
        self.initial_norm = _norm(width)
        self.down1 = Down(width, 4 * width, dropout=0.01)
        self.stage1 = nn.Sequential(*(Bottleneck(4 * width, dropout=0.01) for _ in range(4)))
        self.down2 = Down(4 * width, 8 * width, dropout=0.1)
        self.stage2 = nn.Sequential(
            *(Bottleneck(8 * width, dropout=0.1, **kind) for kind in (*_MIDDLE, *_MIDDLE))
        )
        self.up4 = Up(8 * width, 4 * width)
        self.stage4 = nn.Sequential(*(Bottleneck(4 * width, dropout=0.1) for _ in range(2)))
        self.up5 = Up(4 * width, width)
        self.stage5 = Bottleneck(width, dropout=0.1)
        self.classify = nn.ConvTranspose2d(width, classes, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> scores (N, K, H, W)."""
        x = self.initial_norm(torch.cat([self.initial(x), F.max_pool2d(x, 2)], 1))
        x, half = self.down1(x)
        x, quarter = self.down2(self.stage1(x))
        x = self.up4(self.stage2(x), quarter)
        x = self.up5(self.stage4(x), half)
        scores: Tensor = self.classify(self.stage5(x))
        return scores


class Bottleneck(nn.Module):
    """x + (1 x 1, convolution, 1 x 1, spatial dropout) of x."""

    def __init__(self, width: int, dropout: float, dilation: int = 1, asymmetric: int = 0) -> None:
        super().__init__()
        inner = width // 4
        if asymmetric:
            side = asymmetric // 2
            middle: list[nn.Module] = [
                nn.Conv2d(inner, inner, (asymmetric, 1), padding=(side, 0), bias=False),
                nn.Conv2d(inner, inner, (1, asymmetric), padding=(0, side), bias=False),
            ]
        else:
            middle = [nn.Conv2d(inner, inner, 3, padding=dilation, dilation=dilation, bias=False)]
        first = nn.Conv2d(width, inner, 1, bias=False)
        self.branch = _branch(first, middle, width, dropout)
        self.activate = nn.PReLU(width)

    def forward(self, x: Tensor) -> Tensor:
        """A map of the same shape."""
        result: Tensor = self.activate(x + self.branch(x))
        return result


class Down(nn.Module):
    """Halves a map; the main branch is a max-pooling whose channels are filled up with zeros."""

    def __init__(self, before: int, after: int, dropout: float) -> None:
        super().__init__()
        inner = after // 4
        self.more = after - before
        first = nn.Conv2d(before, inner, 2, stride=2, bias=False)
        middle = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        self.branch = _branch(first, [middle], after, dropout)
        self.activate = nn.PReLU(after)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The map, and where its maxima stood."""
        main, indices = F.max_pool2d(x, 2, return_indices=True)
        main = F.pad(main, (0, 0, 0, 0, 0, self.more))
        return self.activate(main + self.branch(x)), indices


class Up(nn.Module):
    """Doubles a map; the main branch puts values back where `Down` took them from."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        inner = after // 4
        self.main = nn.Sequential(nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after))
        first = nn.Conv2d(before, inner, 1, bias=False)
        middle = nn.ConvTranspose2d(inner, inner, 2, stride=2, bias=False)
        self.branch = _branch(first, [middle], after, 0.1)
        self.activate = nn.PReLU(after)

    def forward(self, x: Tensor, indices: Tensor) -> Tensor:
        """`indices`: of a map with as many channels as the result."""
        result: Tensor = self.activate(
            F.max_unpool2d(self.main(x), indices, [2, 2]) + self.branch(x)
        )
        return result


def _branch(
    first: nn.Conv2d, middle: list[nn.Module], outputs: int, dropout: float
) -> nn.Sequential:
    """A bottleneck's convolutions, each normalised, and the one to its outputs."""
    inner = first.out_channels
    last = nn.Conv2d(inner, outputs, 1, bias=False)
    norm, drop = nn.BatchNorm2d(outputs), nn.Dropout2d(dropout)
    return nn.Sequential(first, _norm(inner), *middle, _norm(inner), last, norm, drop)


def _norm(width: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(width), nn.PReLU(width))
