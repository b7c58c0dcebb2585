"""U-Net as of 2015: Ronneberger, Fischer and Brox, MICCAI 2015, arXiv 1505.04597.

31,032,135 parameters with three input channels and 7 classes (31,030,658 with the paper's one and
two). No normalisation, dropout at the end of the contracting path, first weights after
He (section 3). Differs from the paper: convolutions are padded with zeros, so that scores come at
the size of the image; the paper's lose 92 px on every side and mirror the image to make up for
it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 5
WIDTH = 64


class UNet2015(nn.Module):
    """Contracting and expanding path of equal width, joined at every level."""

    stride = 2 ** (LEVELS - 1)

    def __init__(self, classes: int, width: int = WIDTH) -> None:
        """`width`: channels at full resolution, doubled at each of the four poolings."""
        super().__init__()
        widths = [width << level for level in range(LEVELS)]
        self.down = nn.ModuleList(_twice(a, b) for a, b in zip([3, *widths], widths, strict=False))
        finer = widths[-2::-1]
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in finer)
        self.join = nn.ModuleList(_twice(2 * w, w) for w in finer)
        self.dropout = nn.Dropout()
        self.classify = nn.Conv2d(width, classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> scores (N, K, H, W)."""
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            if level >= LEVELS - 2:
                x = self.dropout(x)
            skips.append(x)
        skips.pop()
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([skips.pop(), up(x)], 1))
        scores: Tensor = self.classify(x)
        return scores


def _twice(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(after, after, 3, padding=1),
        nn.ReLU(inplace=True),
    )
