"""PointRend: a feature pyramid whose coarse scores are corrected point by point (CVPR 2020).

The paper's semantic segmentation form as in mmsegmentation 1.2.2, whose numbers it reproduces:
28,700,959 parameters with 7 classes on ResNet-50 ("v1c")."""

from collections.abc import Mapping, Sequence

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines.parts import Normalised, kaiming, resize, small, start_encoder
from baselines.pointrend.spec import Spec

LAYERS = 3  # of the point head
FIRST = 2  # the encoder's level at 1/4; earlier ones are not used


class Pyramid(nn.Module):
    """Feature pyramid: 1 x 1 laterals, sums from the top down, 3 x 3 outputs, no norm."""

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        laterals = [nn.Conv2d(inputs, width, 1) for inputs in channels]
        outputs = [nn.Conv2d(width, width, 3, padding=1) for _ in channels]
        for conv in (*laterals, *outputs):
            nn.init.xavier_uniform_(conv.weight)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)
        self.laterals, self.outputs = nn.ModuleList(laterals), nn.ModuleList(outputs)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (N, C_i, h_i, w_i), finest first -> as many maps (N, width, h_i, w_i)."""
        merged = [lateral(map) for lateral, map in zip(self.laterals, maps, strict=True)]
        for level in range(len(merged) - 1, 0, -1):
            merged[level - 1] += F.interpolate(merged[level], merged[level - 1].shape[-2:])
        return [output(map) for output, map in zip(self.outputs, merged, strict=True)]


class Coarse(nn.Module):
    """Panoptic FPN's semantic head: every level is brought to the finest one's size, and summed."""

    def __init__(self, inputs: int, width: int, classes: int, levels: int = 4) -> None:
        super().__init__()
        self.levels = nn.ModuleList([_lift(inputs, width, level) for level in range(levels)])
        self.classify = nn.Conv2d(width, classes, 1)
        small(self.classify)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """The pyramid's maps, finest first -> scores (N, K, h, w) of the finest one's size."""
        finest = maps[0].shape[-2:]
        total: Tensor | float = 0.0
        for lift, map in zip(self.levels, maps, strict=True):
            total = total + resize(lift(map), finest)
        scores: Tensor = self.classify(total)
        return scores


class PointHead(nn.Module):
    """Scores of a point from its fine feature and its coarse scores: a multilayer perceptron that
    all points share."""

    def __init__(self, inputs: int, width: int, classes: int) -> None:
        super().__init__()
        widths = [inputs] + [width] * (LAYERS - 1)
        layers = [nn.Conv1d(before + classes, width, 1) for before in widths]
        for conv in layers:
            kaiming(conv)
        self.layers = nn.ModuleList(layers)
        self.classify = nn.Conv1d(width + classes, classes, 1)
        small(self.classify)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Fine features (N, C, P) and coarse scores (N, K, P) of P points -> scores (N, K, P)."""
        x = fine
        for layer in self.layers:  # each also takes the coarse scores
            x = F.relu(layer(torch.cat([x, coarse], 1)), inplace=True)
        scores: Tensor = self.classify(torch.cat([x, coarse], 1))
        return scores


class PointRend(Normalised):
    """All parts; inference.py and training.py combine them."""

    def __init__(self, spec: Spec, classes: int) -> None:
        super().__init__(spec.mean, spec.std, divisor=255, dtype=torch.float32)
        encoder = smp.encoders.get_encoder(spec.encoder, weights=None)
        self.encoder = encoder
        self.pyramid = Pyramid(encoder.out_channels[FIRST:], spec.fpn_width)
        self.coarse = Coarse(spec.fpn_width, spec.head_width, classes)
        self.point = PointHead(spec.fpn_width, spec.point_width, classes)

    def maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A normalised image (N, 3, H, W) -> the pyramid's finest map (N, C, h, w) and coarse
        scores (N, K, h, w), both at 1/4, sides rounded up."""
        maps = self.pyramid(self.encoder(x)[FIRST:])
        return maps[0], self.coarse(maps)


def build(spec: Spec, classes: int) -> PointRend:
    """The network of a spec with random weights.

    Raises:
        KeyError or RuntimeError: segmentation-models-pytorch, or timm, has no such encoder.
    """
    return PointRend(spec, classes)


def start(network: PointRend, encoder_state: Mapping[str, Tensor]) -> None:
    """Start weights for the encoder.

    Raises:
        ValueError: they are of another encoder.
    """
    refusal = "the start weights are of another encoder than the spec's `encoder`."
    start_encoder(network.encoder, encoder_state, refusal)


def uncertainty(scores: Tensor) -> Tensor:
    """The second best score of each place less the best, so that the least certain is largest:
    (N, K, ...) -> (N, ...)."""
    # Class by class: two maps instead of the four, two of them 64 bits wide, of the K's top two.
    best = torch.maximum(scores[:, 0], scores[:, 1])
    second = torch.minimum(scores[:, 0], scores[:, 1])
    for k in range(2, scores.shape[1]):
        second = torch.maximum(second, torch.minimum(best, scores[:, k]))
        best = torch.maximum(best, scores[:, k])
    return second - best


def sample(map: Tensor, places: Tensor, mode: str = "bilinear") -> Tensor:
    """Values of a map (N, C, h, w) at points (N, P, 2): (N, C, P).

    Args:
        places: (x, y), each in 0..1 between the map's edges. The map is padded with 0, which
            affects points within half a cell of an edge.
    """
    dtype = torch.promote_types(map.dtype, places.dtype)  # both have to be of one
    cells = 2 * places[:, None].to(dtype) - 1
    found: Tensor = F.grid_sample(map.to(dtype), cells, mode, align_corners=False)
    return found[:, :, 0]


def _lift(inputs: int, width: int, level: int) -> nn.Sequential:
    """From a level of the pyramid to the finest one's size, doubled once a level."""
    steps: list[nn.Module] = []
    for step in range(max(level, 1)):
        steps.append(_unit(width if step else inputs, width))
        if level:
            steps.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
    return nn.Sequential(*steps)


def _unit(inputs: int, outputs: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    kaiming(conv)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))
