"""The networks, images and settings that golden data tells of."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from baselines.magnet.inference import Plan
from baselines.magnet.model import MagNet, build
from baselines.magnet.spec import Spec
from reference.formulas import generator, image, label
from reference.magnet.checkpoint import backbone_key

FLOAT = {"float32": torch.float32, "float64": torch.float64}
LOUDER = 8
"""By so much the last convolution of a refinement is multiplied: it is sure of something then."""
AREA = 2
"""Where OpenCV shrinks both sides by exactly this it takes means."""
BITS = 11
"""Of the weights between two pixels."""


def weight(key: str, shape: Sequence[int], seed: int) -> NDArray[np.float32] | NDArray[np.int64]:
    """The value of a parameter or buffer of the released networks, by its official name."""
    if key.endswith("num_batches_tracked"):
        return np.zeros(tuple(shape), np.int64)
    values = generator(f"{key}:{seed}").standard_normal(tuple(shape))
    if key.endswith((".bias", "running_mean")):
        values *= 0.1
    elif key.endswith("running_var"):
        values = 1 + 0.1 * np.abs(values)
    elif len(shape) == 4:
        gain = 2.0 if key.startswith("resnet_") else 1.0
        values *= np.sqrt(gain / np.prod(shape[1:]))
    else:  # the factor of a batch norm; a bottleneck's last is small
        values = (1 + 0.1 * values) * (0.25 if key.endswith("bn3.weight") else 1.0)
    return values.astype(np.float32)


def spec_of(config: Mapping[str, Any]) -> Spec:
    """The settings of a case, those of the released code; its sizes are (width, height)."""
    return Spec(
        refinements=config["refs"],
        scales=tuple((height, width) for width, height in config["scales_wh"]),
        patch_px=(config["crop"][1], config["crop"][0]),
        input_px=(config["inp"][1], config["inp"][0]),
        smooth_px=config["smooth"],
        official=True,
    )


def plan_of(config: Mapping[str, Any]) -> Plan:
    """How much of each later scale a case looks at, and replaces."""
    patches = config["n_patches"]
    return Plan(None if patches < 0 else patches, config["n_points"])


def network_of(spec: Spec, classes: int, seed: int, dtype: str, louder: int = LOUDER) -> MagNet:
    """The network with the weights that the formulas make, in eval mode."""
    network = build(spec, classes)
    fill(network.backbone, seed, backbone_key)
    for number, module in enumerate(network.refine, 1):
        fill(module, seed, lambda key, number=number: f"resnet_refine{number}.{key}")
        module.seg_conv.weight.data *= louder  # type: ignore[union-attr, operator]
    return network.to(FLOAT[dtype]).eval().requires_grad_(False)


def fill(module: nn.Module, seed: int, name: Any) -> None:
    """Give a module the weights of the formulas, each by the name that it has for them."""
    module.load_state_dict(
        {
            key: torch.from_numpy(np.asarray(weight(name(key), tuple(value.shape), seed)))
            for key, value in module.state_dict().items()
        }
    )


def pictures(height: int, width: int, seed: int, classes: int) -> tuple[Tensor, Tensor]:
    """An image (3, H, W) uint8 and its label (H, W)."""
    pixels = image(height, width, seed).transpose(2, 0, 1).copy()
    return torch.from_numpy(pixels), torch.from_numpy(label(height, width, seed, classes))


def resize_as_opencv(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(3, H, W) uint8 at another size, to the bit as OpenCV's bilinear resizing of bytes.

    Weights have 11 bits; rows are mixed in two products that are cut off apart, also beyond the
    border, where both are of the same row.
    """
    if image.shape[-2:] == size:
        return image
    x = image.numpy().astype(np.int64)
    if image.shape[-2:] == (AREA * size[0], AREA * size[1]):
        total = x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]
        return torch.from_numpy(((total + 2) >> 2).astype(np.uint8))
    rows, columns = (_between(*pair) for pair in zip(image.shape[1:], size, strict=True))
    inside = (columns.first >= 0) & (columns.first < x.shape[2] - 1)
    share = np.where(inside, columns.share, np.float32(0))
    left, right = (np.clip(columns.first + i, 0, x.shape[2] - 1) for i in (0, 1))
    x = x[:, :, left] * _weights(1 - share) + x[:, :, right] * _weights(share)
    top, bottom = (np.clip(rows.first + i, 0, x.shape[1] - 1) for i in (0, 1))
    upper = (x[:, top] >> 4) * _weights(1 - rows.share)[:, None] >> 16
    lower = (x[:, bottom] >> 4) * _weights(rows.share)[:, None] >> 16
    return torch.from_numpy(((upper + lower + 2) >> 2).astype(np.uint8))


class _Between(NamedTuple):
    """Where each new line lies: after which line, and how far beyond it, 0..1."""

    first: NDArray[np.int64]
    share: NDArray[np.float32]


def _between(side: int, cells: int) -> _Between:
    at = ((np.arange(cells) + 0.5) * (1 / (cells / side)) - 0.5).astype(np.float32)
    first = np.floor(at)
    return _Between(first.astype(np.int64), at - first)


def _weights(shares: NDArray[np.float32]) -> NDArray[np.int64]:
    found: NDArray[np.int64] = np.rint(shares * np.float32(1 << BITS)).astype(np.int64)
    return found
