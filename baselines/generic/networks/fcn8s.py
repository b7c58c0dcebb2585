"""FCN-8s: Long, Shelhamer and Darrell, CVPR 2015 (PAMI 2017, arXiv 1605.06211), on VGG-16.

134,296,181 parameters with 7 classes, of which fc6 has 102,764,544. The first convolution sees the
image inside 100 px of zeros, so that fc6 without padding fits any image; `pad_px` 0 pads fc6
instead, which costs less and is not the published network. Enlargements are bilinear at the start,
and the last one stays so (section 4.3). Differs from the paper: fc6 and fc7 start
random, since the ImageNet weights that come with an encoder are without the classifier."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.generic.networks.vgg import VGG16, WIDTH, bilinear, pool

PAD_PX = 100
# Where the image begins in the scores of a stage, in its pixels, if 100 px stand before it.
_SKIP_4, _SKIP_3, _IMAGE = 5, 9, 31


class FCN8s(nn.Module):
    """VGG-16 whose classifier is convolutions, with skips from pool3 and pool4."""

    stride = 1
    last: Tensor

    def __init__(self, classes: int, width: int = WIDTH, pad_px: int = PAD_PX) -> None:
        """`width`: channels of the first stage; 64 times it those of fc6 and fc7. `pad_px`: 100 as
        published, or 0.

        Raises:
            ValueError: another padding, whose maps would not meet.
        """
        super().__init__()
        if pad_px not in (0, PAD_PX):
            raise ValueError(f"fcn8s pads its input by {PAD_PX} px, as published, or by 0")
        self.pad_px = pad_px
        self.encoder = VGG16(width, batch_norm=False)
        self.encoder.pad_first(max(pad_px, 1))
        fc = 64 * width
        self.fc6 = nn.Conv2d(8 * width, fc, 7, padding=0 if pad_px else 3)
        self.fc7 = nn.Conv2d(fc, fc, 1)
        self.dropout = nn.Dropout()
        self.score = nn.Conv2d(fc, classes, 1)
        self.score4 = nn.Conv2d(8 * width, classes, 1)
        self.score3 = nn.Conv2d(4 * width, classes, 1)
        self.up5 = nn.ConvTranspose2d(classes, classes, 4, stride=2, bias=False)
        self.up4 = nn.ConvTranspose2d(classes, classes, 4, stride=2, bias=False)
        self.register_buffer("last", bilinear(classes, 8), persistent=False)
        for conv in (self.score, self.score4, self.score3):
            assert conv.bias is not None
            nn.init.zeros_(conv.weight)  # section 4.3
            nn.init.zeros_(conv.bias)
        with torch.no_grad():
            for up in (self.up5, self.up4):
                up.weight.copy_(bilinear(classes, 2))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) of any size -> scores (N, K, H, W)."""
        image = x
        pools: list[Tensor] = []
        for number in range(5):
            x = pool(self.encoder.stage(x, number))
            pools.append(x)
        x = self.dropout(F.relu(self.fc6(x), inplace=True))
        x = self.dropout(F.relu(self.fc7(x), inplace=True))
        x = self.score(x)
        x = self._join(self.up5(x), self.score4(pools[3]), _SKIP_4)
        x = self._join(self.up4(x), self.score3(pools[2]), _SKIP_3)
        x = F.conv_transpose2d(x, self.last, stride=8)
        return _crop(x, image, _IMAGE if self.pad_px else 4)

    def _join(self, coarse: Tensor, skip: Tensor, begin: int) -> Tensor:
        """The sum over what both maps cover; an enlarged map has one pixel too many all around."""
        if self.pad_px:
            return coarse + _crop(skip, coarse, begin)
        return _crop(coarse, skip, 1) + skip


def _crop(x: Tensor, like: Tensor, begin: int) -> Tensor:
    height, width = like.shape[-2:]
    return x[..., begin : begin + height, begin : begin + width]
