"""ICNet: Zhao, Qi, Shen, Shi and Jia, ECCV 2018, arXiv 1704.08545.

The quarter-size image goes through a dilated ResNet with pyramid pooling, the half-size one through
the first 17 layers of it, whose result the quarter takes over (section 3.2), the full one through
three convolutions; cascade feature fusion joins them. 24,582,325 parameters with ResNet-50 and 7
classes. Differs from the paper: the ResNet is not compressed to half its channels after training,
and labels are not shrunk for the auxiliary losses, but scores enlarged."""

from torch import Tensor, nn
from torch.nn import functional as F

BINS = (1, 2, 3, 6)
WEIGHTS = (1.0, 0.4, 0.16)
"""Of the losses at 1/4, 1/8 and 1/16 of the image (section 3.4, in the authors' settings)."""
WIDTH = 128


class ICNet(nn.Module):
    """Image cascade of three resolutions over one encoder."""

    stride = 32

    def __init__(self, encoder: nn.Module, classes: int, width: int = WIDTH) -> None:
        """`encoder`: a ResNet with torchvision's names, dilated to 1/8; `width`: channels of the
        fused maps.

        Raises:
            ValueError: the encoder is no such ResNet.
        """
        super().__init__()
        if not isinstance(getattr(encoder, "layer2", None), nn.Sequential):
            raise ValueError("icnet shares the first layers of a ResNet: take resnet50, say.")
        self.encoder = encoder
        coarse, medium = _channels(encoder.layer4), _channels(encoder.layer2)
        self.squeeze = _conv(coarse, 2 * width, 1)
        self.fine = nn.Sequential(
            _conv(3, width // 4, 3, stride=2),
            _conv(width // 4, width // 4, 3, stride=2),
            _conv(width // 4, width // 2, 3, stride=2),
        )
        self.fuse_medium = Fusion(2 * width, medium, width, classes)
        self.fuse_fine = Fusion(width, width // 2, width, classes)
        self.classify = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> scores (N, K, H, W)."""
        coarse, medium = self._coarse_and_medium(x)
        x_medium = self.fuse_medium(coarse, medium)
        return self._main(self.fuse_fine(x_medium, self.fine(x)), x)

    def heads(self, x: Tensor) -> list[tuple[float, Tensor]]:
        """The outputs in the loss: the scores, and those of each fusion's coarser map."""
        coarse, medium = self._coarse_and_medium(x)
        joined = self.fuse_medium(coarse, medium)
        scores = [
            self._main(self.fuse_fine(joined, self.fine(x)), x),
            self.fuse_fine.auxiliary(_doubled(joined)),
            self.fuse_medium.auxiliary(_doubled(coarse)),
        ]
        full = [_resize(one, x) for one in scores]
        return list(zip(WEIGHTS, full, strict=True))

    def _coarse_and_medium(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 2 width, H/32, W/32) and the map of the half-size image at 1/16."""
        net = self.encoder
        half = F.interpolate(x, scale_factor=0.5, mode="bilinear")
        stem = net.maxpool(net.relu(net.bn1(net.conv1(half))))  # type: ignore[operator]
        assert isinstance(net.layer2, nn.Sequential)
        first, *rest = net.layer2
        medium = first(net.layer1(stem))  # type: ignore[operator]
        x = F.interpolate(medium, scale_factor=0.5, mode="bilinear")
        for block in (*rest, net.layer3, net.layer4):
            x = block(x)  # type: ignore[operator]
        pooled = [_resize(F.adaptive_avg_pool2d(x, side), x) for side in BINS]
        for level in pooled:
            x = x + level
        return self.squeeze(x), medium

    def _main(self, x: Tensor, image: Tensor) -> Tensor:
        """Scores at 1/4, enlarged to the image (section 3.2)."""
        return _resize(self.classify(_doubled(x)), image)


class Fusion(nn.Module):
    """Cascade feature fusion (section 3.3): a coarse map, doubled and dilated, plus a finer one."""

    def __init__(self, coarse: int, fine: int, width: int, classes: int) -> None:
        super().__init__()
        self.coarse = nn.Sequential(
            nn.Conv2d(coarse, width, 3, padding=2, dilation=2, bias=False), nn.BatchNorm2d(width)
        )
        self.fine = nn.Sequential(nn.Conv2d(fine, width, 1, bias=False), nn.BatchNorm2d(width))
        self.auxiliary = nn.Conv2d(coarse, classes, 1)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """A map of the finer one's size."""
        return F.relu(self.coarse(_resize(coarse, fine)) + self.fine(fine))


def _channels(stage: object) -> int:
    """Of the last normalisation in a stage: what comes out of it."""
    assert isinstance(stage, nn.Sequential)
    return [m for m in stage[-1].modules() if isinstance(m, nn.BatchNorm2d)][-1].num_features


def _conv(before: int, after: int, side: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, side, stride=stride, padding=side // 2, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    )


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear")


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[-2:], mode="bilinear")
