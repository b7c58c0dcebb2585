"""SegNet: Badrinarayanan, Kendall and Cipolla, PAMI 2017, arXiv 1511.00561, on VGG-16 with batch
norm.

29,447,047 parameters with 7 classes. The decoder mirrors the encoder; it enlarges by putting each
value back where the encoder's pooling took it from (section 3)."""

from torch import Tensor, nn
from torch.nn import functional as F

from baselines.generic.networks.vgg import STAGES, VGG16, WIDTH


class SegNet(nn.Module):
    """Encoder, indices of its maxima, mirrored decoder."""

    stride = 1

    def __init__(self, classes: int, width: int = WIDTH) -> None:
        """`width`: channels of the first stage."""
        super().__init__()
        self.encoder = VGG16(width, batch_norm=True)
        channels = STAGES[-1][-1] * width
        stages: list[nn.Module] = []
        for number in range(len(STAGES) - 1, -1, -1):
            # As many convolutions as the encoder has here; the last one leads to the next stage.
            before = STAGES[number - 1][-1] if number else 0
            after = [*(times * width for times in STAGES[number][:-1]), before * width or classes]
            layers: list[nn.Module] = []
            for out in after:
                layers.append(nn.Conv2d(channels, out, 3, padding=1))
                layers += [nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
                channels = out
            stages.append(nn.Sequential(*layers if number else layers[:-2]))
        self.decoder = nn.ModuleList(stages)
        for module in self.decoder.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) of at least 32 px -> scores (N, K, H, W)."""
        taken: list[tuple[Tensor, list[int]]] = []
        for number in range(len(STAGES)):
            x = self.encoder.stage(x, number)
            size = list(x.shape[-2:])
            x, indices = F.max_pool2d(x, 2, return_indices=True)
            taken.append((indices, size))
        for block in self.decoder:
            indices, size = taken.pop()
            x = block(F.max_unpool2d(x, indices, [2, 2], output_size=size))
        return x
