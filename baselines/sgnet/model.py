"""SGNet: a network on patches that also sees their surroundings (NeurIPS 2024); ours, after its text.

A DeepLabv3+ sees the patch; the first four stages of STDC and a context module see a larger area
around it. Both features are concatenated where the patch lies. The surroundings have a classifier of
their own, for training."""

from collections.abc import Mapping
from typing import NamedTuple

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.parts import STDC_WIDTHS, Normalised, Unit, features_of, start_stdc, stdc
from baselines.sgnet.spec import Spec

STRIDE = 16  # of both branches; sides are padded to a multiple of it
CELL_PX = 4  # of the local feature


class WindowAttention(nn.Module):
    """Self-attention of the cells of a window among themselves."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.project = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, h, w); windows start at the top left, zeros fill the last ones."""
        height, width = x.shape[-2:]
        side = self.window
        x = F.pad(self.qkv(x), (0, -width % side, 0, -height % side))
        images, channels, rows, columns = x.shape
        grid = (images, 3, self.heads, channels // (3 * self.heads))
        x = x.reshape(*grid, rows // side, side, columns // side, side)
        x = x.permute(1, 0, 4, 6, 2, 5, 7, 3).flatten(5, 6).flatten(1, 3)  # (3, P, heads, cells, d)
        x = F.scaled_dot_product_attention(*x)
        x = x.reshape(images, rows // side, columns // side, self.heads, side, side, -1)
        x = x.permute(0, 3, 6, 1, 4, 2, 5).reshape(images, -1, rows, columns)
        found: Tensor = self.project(x[..., :height, :width])
        return found


class ContextBlock(nn.Module):
    """Attention in windows, a convolution and the mean over the map, added; then a perceptron."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(1, width), nn.GroupNorm(1, width)
        self.attention = WindowAttention(width, heads, window)
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.mean = nn.Conv2d(width, width, 1)
        self.mlp = nn.Sequential(
            nn.Conv2d(width, 4 * width, 1), nn.GELU(), nn.Conv2d(4 * width, width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, h, w)."""
        y = self.norm1(x)
        mean = self.mean(y.mean((-2, -1), keepdim=True))
        x = x + self.attention(y) + self.conv(y) + mean
        found: Tensor = x + self.mlp(self.norm2(x))
        return found


class Scores(NamedTuple):
    """What the network gives of patches and their surroundings; sides are rounded up."""

    patch: Tensor
    """(P, K, h / 4, w / 4)."""
    around: Tensor
    """Of the surroundings alone: (P, K, H / 16, W / 16)."""


class SGNet(Normalised):
    """Both branches and the classifiers."""

    def __init__(self, spec: Spec, classes: int) -> None:
        super().__init__((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), divisor=255)  # ImageNet's
        local = smp.DeepLabV3Plus(
            spec.encoder, encoder_weights=None, decoder_channels=spec.decoder_width
        )
        self.encoder, self.decoder = local.encoder, local.decoder
        self.parts = stdc()
        self.reduce = Unit(STDC_WIDTHS[-1], spec.width, 1)
        self.context = nn.Sequential(
            *(ContextBlock(spec.width, spec.heads, spec.window) for _ in range(spec.depth))
        )
        joined = spec.decoder_width + spec.width
        self.join = Unit(joined, spec.decoder_width)
        self.classify = nn.Conv2d(spec.decoder_width, classes, 1)
        self.classify_around = nn.Conv2d(spec.width, classes, 1)

    def normalise(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 anywhere -> float on the network's device; 0, the mean colour, fills the
        right and lower edge to a multiple of 16."""
        x = super().normalise(images)
        return F.pad(x, (0, -x.shape[-1] % STRIDE, 0, -x.shape[-2] % STRIDE))

    def forward(self, patches: Tensor, around: Tensor, corners: Tensor) -> Scores:
        """Patches (P, 3, h, w) uint8, their surroundings (P, 3, H, W) uint8, and where each patch
        begins in them, (P, 2): top and left in pixels."""
        x = self.normalise(around)
        for part in self.parts:
            x = part(x)
        x = self.context(self.reduce(x))
        local = self.decoder(self.encoder(self.normalise(patches)))
        seen = located(x, corners, (local.shape[-2], local.shape[-1]))
        scores = self.classify(self.join(torch.cat([local, seen], 1)))
        return Scores(scores, self.classify_around(x))


def located(maps: Tensor, corners: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps of surroundings (P, C, h, w), at 1/16, sampled at the cells of patches: (P, C, *size), at
    1/4; bilinear.

    Args:
        corners: (P, 2), top and left of each patch in pixels of its surroundings.
    """
    along = []
    for axis in (0, 1):
        cells = torch.arange(size[axis], device=maps.device) + 0.5
        px = corners[:, axis, None].float() + CELL_PX * cells  # (P, cells)
        along.append(2 * px / (STRIDE * maps.shape[2 + axis]) - 1)
    rows, columns = along[0][:, :, None], along[1][:, None]
    shape = (len(corners), *size)
    both = torch.stack([columns.expand(shape), rows.expand(shape)], -1)  # (P, h, w, 2): x, y
    return F.grid_sample(maps, both.to(maps.dtype), padding_mode="border", align_corners=False)


def build(spec: Spec, classes: int) -> SGNet:
    """SGNet with random weights: 29,271,550 parameters with ResNet-50 and 7 classes."""
    return SGNet(spec, classes)


def start(network: SGNet, encoder_state: Mapping[str, Tensor]) -> None:
    """Start weights for the local network's encoder, for the surroundings' branch (keys `features.*`
    of STDC-1), or for both.

    Raises:
        ValueError: there are weights for neither, or of another network.
    """
    stdc_state = features_of(encoder_state)
    own = network.encoder.state_dict()
    given = {key: value for key, value in encoder_state.items() if key in own}
    if not stdc_state and not given:
        raise ValueError("it starts from its encoder, from STDC-1 (`features.*`), or from both.")
    if given:
        if own.keys() != given.keys() or any(own[key].shape != given[key].shape for key in own):
            raise ValueError("the start weights are of another encoder than the spec's.")
        network.encoder.load_state_dict(given)
    if stdc_state:
        start_stdc(network.parts, stdc_state)
