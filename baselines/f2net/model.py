"""F2Net: low and high frequencies of an image in branches of their own (CVPR 2026).

A learnt filter splits the image; the shrunk low frequencies go through a convolutional and a
transformer branch, the high ones through a state-space branch at full resolution. The modules are
those of the released code; `F2Net`, which joins them, and its classifier are ours. `alignment` is
used in training only."""

from collections.abc import Mapping
from itertools import pairwise

import torch
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.f2net.scan import selective_scan
from baselines.f2net.spec import Spec
from baselines.parts import Normalised, ResNet, Unit, resize

WIDTH = 32  # channels of the low and the high map
GROUPS = 8  # of channels with one filter
TAPS = 3  # sides of a filter
FUSED = 128
TOKENS = 192  # channels of the transformer
HEAD = 64  # channels of one of its heads
STAGES = ((64, 2), (128, 2), (256, 4), (512, 2))  # channels and blocks of the state-space branch
STATE = 64  # numbers of a channel's state
SCANNED = 16  # channels of a head of the scan
DIRECTIONS = 4


class Split(nn.Module):
    """Adaptive frequency decomposition (AFD): a smoothing filter for each place and group of
    channels, and what it leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Conv2d(3, WIDTH, 1)
        width = WIDTH // GROUPS
        self.filters = nn.ModuleList(
            [nn.Conv2d(width, TAPS**2, TAPS, padding=TAPS // 2) for _ in range(GROUPS)]
        )

    def forward(self, x: Tensor, scale: float = 1) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) -> the low frequencies (N, 32, h, w) with sides times `scale`, and the high
        ones (N, 32, H, W). Without gradients one map of the image's size is held, not three."""
        size = [max(round(scale * side), 1) for side in x.shape[-2:]]
        map = self.project(x)
        lows, highs = [], []
        for group, filters in zip(map.chunk(GROUPS, 1), self.filters, strict=True):
            low = _filtered(group, filters(group).softmax(1))
            lows.append(resize(low, size))
            highs.append(group - low if torch.is_grad_enabled() else group.sub_(low))
        return torch.cat(lows, 1), torch.cat(highs, 1) if torch.is_grad_enabled() else map


class Pyramid(nn.Module):
    """Atrous spatial pyramid pooling; its mean over the map is the last branch."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        dilated = [Unit(inputs, FUSED, dilation=d) for d in (12, 24, 36)]
        self.branches = nn.ModuleList([Unit(inputs, FUSED, 1), *dilated])
        self.pool = nn.Conv2d(inputs, FUSED, 1, bias=False)
        self.norm = nn.GroupNorm(1, FUSED)
        self.join = Unit(5 * FUSED, FUSED)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, 128, h, w)."""
        mean = F.relu(self.norm(self.pool(x.mean((-2, -1), keepdim=True))))
        found = [branch(x) for branch in self.branches]
        joined: Tensor = self.join(torch.cat([*found, mean.expand(-1, -1, *x.shape[-2:])], 1))
        return joined


class Short(nn.Module):
    """The short-range branch: DeepLabV3 on a ResNet-18."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = ResNet(18, WIDTH, all_dilated=True)
        self.pyramid = Pyramid(512)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 32, h, w) -> (N, 128, h / 8, w / 8), rounded up."""
        found: Tensor = self.pyramid(self.backbone(x)[-1])
        return found


class Attention(nn.Module):
    """Self-attention of all tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(TOKENS, 3 * TOKENS)
        self.project = nn.Linear(TOKENS, TOKENS)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, 192) -> (N, T, 192)."""
        query, key, value = self.qkv(x).unflatten(2, (3, -1, HEAD)).permute(2, 0, 3, 1, 4)
        if torch.is_grad_enabled():  # the fused operator has no second derivatives
            mixed = (query @ key.transpose(2, 3) * HEAD**-0.5).softmax(-1) @ value
        else:
            mixed = F.scaled_dot_product_attention(query, key, value)
        found: Tensor = self.project(mixed.transpose(1, 2).flatten(2))
        return found


class TransformerBlock(nn.Module):
    """Attention and a perceptron, each behind a layer norm and added."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(TOKENS), nn.LayerNorm(TOKENS)
        self.attention = Attention()
        self.mlp = Mlp(TOKENS, 4 * TOKENS)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, 192) -> (N, T, 192)."""
        x = x + self.attention(self.norm1(x))
        found: Tensor = x + self.mlp(self.norm2(x))
        return found


class Long(nn.Module):
    """The long-range branch: a small vision transformer."""

    def __init__(self, depth: int = 6) -> None:
        super().__init__()
        self.embed = nn.Conv2d(WIDTH, TOKENS, 8, 8)
        self.position = nn.Parameter(torch.zeros(1, TOKENS, 64, 64))
        self.blocks = nn.ModuleList([TransformerBlock() for _ in range(depth)])
        self.norm = nn.LayerNorm(TOKENS)
        nn.init.normal_(self.position, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 32, h, w) -> (N, 192, h / 8, w / 8), rounded down, at least 1; a shorter side is
        filled with 0."""
        missing = [max(8 - side, 0) for side in x.shape[-2:]]
        map = self.embed(F.pad(x, (0, missing[1], 0, missing[0])) if any(missing) else x)
        size = map.shape[-2:]
        map = map + F.interpolate(self.position, size, mode="bicubic", align_corners=False)
        tokens = map.flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens)
        found: Tensor = self.norm(tokens).transpose(1, 2).unflatten(2, size)
        return found


class Halving(nn.Sequential):
    """A convolution of stride 2 on channel-last maps, and layer norm."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.Conv2d(inputs, outputs, 3, 2, 1), nn.LayerNorm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(N, h, w, C) -> (N, h / 2, w / 2, C'), sides rounded up."""
        convolution, norm = self
        found: Tensor = norm(convolution(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return found


class Scan(nn.Module):
    """A depthwise convolution, and a state-space model along rows and columns, both ways."""

    def __init__(self, width: int) -> None:
        super().__init__()
        heads = -(-width // SCANNED)
        self.sizes = [heads, STATE, STATE]
        self.into = nn.Linear(width, width, bias=False)
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.project = nn.Parameter(torch.empty(DIRECTIONS, sum(self.sizes), width))
        self.decay = nn.Parameter(torch.zeros(DIRECTIONS, heads))  # logarithms
        self.step = nn.Parameter(0.1 * torch.rand(DIRECTIONS, heads))
        self.skip = nn.Parameter(torch.ones(DIRECTIONS, heads, width // heads))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, width, bias=False)
        nn.init.normal_(self.project, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(N, h, w, C) -> (N, h, w, C)."""
        size = x.shape[1:3]
        map = F.gelu(self.conv(self.into(x).permute(0, 3, 1, 2)))
        rows = map.flatten(2).transpose(1, 2)  # (N, L, C)
        columns = map.transpose(2, 3).flatten(2).transpose(1, 2)
        del map
        down = self._along(rows, 0) + self._along(rows.flip(1), 2).flip(1)
        across = self._along(columns, 1) + self._along(columns.flip(1), 3).flip(1)
        across = across.reshape(len(x), size[1], size[0], -1).transpose(1, 2).flatten(1, 2)
        found: Tensor = self.out(self.norm(down + across).unflatten(1, size))
        return found

    def _along(self, x: Tensor, k: int) -> Tensor:
        """A sequence (N, L, C) through the model of one direction."""
        step, into, out = torch.split(x @ self.project[k].T, self.sizes, 2)
        step = F.softplus(step + self.step[k])  # (N, L, R)
        heads = x.reshape(*x.shape[:2], *self.skip.shape[1:])
        found = selective_scan(heads * step[..., None], -self.decay[k].exp() * step, into, out)
        summed: Tensor = (found + heads * self.skip[k]).flatten(2)
        return summed


class ScanBlock(nn.Module):
    """A scan and a perceptron, each behind a layer norm and added."""

    def __init__(self, width: int, drop: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.scan = Scan(width)
        self.mlp = Mlp(width, 4 * width)
        self.drop = DropPath(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(N, h, w, C) -> (N, h, w, C)."""
        x = x + self.drop(self.scan(self.norm1(x)))
        found: Tensor = x + self.drop(self.mlp(self.norm2(x)))
        return found


class High(nn.Module):
    """The high-frequency branch: VMamba, with Mamba-2's scan and without gates."""

    def __init__(self, drop_path: float) -> None:
        super().__init__()
        widths = [width for width, _ in STAGES]
        self.embed = nn.Sequential(Halving(WIDTH, WIDTH), nn.GELU(), Halving(WIDTH, widths[0]))
        last = sum(count for _, count in STAGES) - 1
        drops = iter(drop_path * number / last for number in range(last + 1))
        stages = [
            nn.Sequential(*(ScanBlock(width, next(drops)) for _ in range(count)))
            for width, count in STAGES
        ]
        for stage, pair in zip(stages, pairwise(widths), strict=False):
            stage.append(Halving(*pair))
        self.stages = nn.Sequential(*stages)

    def forward(self, x: Tensor) -> Tensor:
        """Embedded (N, h, w, 64) -> (N, 512, h / 8, w / 8), sides rounded up three times."""
        found: Tensor = self.stages(x)
        return found.permute(0, 3, 1, 2)


class Fusion(nn.Module):
    """Hybrid frequency fusion (HFF): both maps' channels are gated by how they relate."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__()
        self.one, self.other = _perceptron(one, one), _perceptron(other, other)
        self.cross_one, self.cross_other = _perceptron(other, 1), _perceptron(one, 1)
        self.project_one, self.project_other = nn.Conv2d(one, FUSED, 1), nn.Conv2d(other, FUSED, 1)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """(N, C, h, w) and (N, C', h', w') -> (N, 128, h, w)."""
        other = resize(other, one.shape[-2:])
        first = self.one(one.mean((2, 3))).sigmoid()  # (N, C)
        second = self.other(other.mean((2, 3))).sigmoid()  # (N, C')
        both = (first[:, :, None] * second[:, None]).sigmoid()  # (N, C, C')
        first = (self.cross_one(both)[..., 0] + first).sigmoid()
        second = (self.cross_other(both.transpose(1, 2))[..., 0] + second).sigmoid()
        one = self.project_one(one * first[..., None, None])
        found: Tensor = one + self.project_other(other * second[..., None, None])
        return found


class Alignment(nn.Module):
    """The loss that draws the fused features of low and high frequencies together (CFAL)."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Conv2d(FUSED, FUSED, 1)
        self.high = nn.Conv2d(STAGES[-1][0], FUSED, 1)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """(N, 128, h, w) and (N, 512, h', w') -> the symmetric divergence of their distributions over
        channels, the mean over images and places."""
        p, q = (
            one.log_softmax(1) for one in (self.low(low), self.high(resize(high, low.shape[-2:])))
        )
        # KL(p || q) + KL(q || p) = sum of (p - q) (log p - log q)
        found: Tensor = ((p.exp() - q.exp()) * (p - q)).sum(1).mean() / 2
        return found


class F2Net(Normalised):
    """All parts; inference.py and training.py combine them."""

    def __init__(self, spec: Spec, classes: int) -> None:
        super().__init__(spec.mean, spec.std)
        self.split = Split()
        self.short, self.long, self.high = Short(), Long(), High(spec.drop_path)
        self.fuse_low, self.fuse = Fusion(FUSED, TOKENS), Fusion(FUSED, STAGES[-1][0])
        self.alignment = Alignment()
        self.classify = nn.Conv2d(FUSED, classes, 1)
        for module in (*self.long.modules(), *self.high.modules()):
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def build(spec: Spec, classes: int) -> F2Net:
    """F2Net with random weights: 29,517,091 parameters with 7 classes, 82,176 of them in
    `alignment`."""
    return F2Net(spec, classes)


def start(network: F2Net, encoder_state: Mapping[str, Tensor]) -> None:
    """No weights are published that fit: its branches see 32 channels.

    Raises:
        ValueError: always.
    """
    raise ValueError("F2Net's branches start from random weights: leave `start` out.")


def _filtered(x: Tensor, kernels: Tensor) -> Tensor:
    """(N, C, H, W), each place filtered by its own kernel (N, 9, H, W), row by row; 0 beyond."""
    height, width = x.shape[-2:]
    padded = F.pad(x, (1, 1, 1, 1))
    total = torch.zeros_like(x)
    for tap in range(TAPS**2):
        row, column = divmod(tap, TAPS)
        seen = padded[..., row : row + height, column : column + width]
        total = total.addcmul(kernels[:, tap : tap + 1], seen)
    return total


def _perceptron(inputs: int, outputs: int) -> nn.Sequential:
    hidden = max(inputs // 4, 8)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
