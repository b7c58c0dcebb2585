"""F2Net's inference: the whole image in one pass."""

from typing import NamedTuple

from torch import Tensor

from baselines.f2net.model import F2Net
from baselines.f2net.spec import Spec
from bench.method import NetworkInput, Strategy
from bench.tiling import labels_of, resize


class Features(NamedTuple):
    """What the branches make of images."""

    low: Tensor
    """Both low-frequency branches, fused: (N, 128, h, w)."""
    high: Tensor
    """(N, 512, H / 32, W / 32), rounded up."""
    logits: Tensor
    """(N, K, h, w)."""


def features(network: F2Net, x: Tensor, spec: Spec) -> Features:
    """Normalised images (N, 3, H, W); maps of their size are freed after their last use."""
    low, full = network.split(x, spec.low_scale)
    embedded = network.high.embed(full.permute(0, 2, 3, 1))
    del full
    high = network.high(embedded)
    del embedded
    fused = network.fuse_low(network.short(low), network.long(low))
    return Features(fused, high, network.classify(network.fuse(fused, high)))


def scores(network: F2Net, x: Tensor, spec: Spec) -> Tensor:
    """A normalised image (1, 3, H, W) on the network's device -> scores (1, K, H, W)."""
    return resize(features(network, x, spec).logits, (x.shape[-2], x.shape[-1]))


def whole(network: F2Net, image: Tensor, spec: Spec) -> Tensor:
    """The image at its own resolution in one piece."""
    found = scores(network, network.normalise(image[None]), spec)
    return labels_of(found[0]).to(image.device)


def _inputs(spec: Spec, height_px: int, width_px: int) -> list[NetworkInput]:
    return [NetworkInput.whole(height_px, width_px, (height_px, width_px))]


STRATEGIES = {
    "whole": Strategy(
        whole,
        ("split", "short", "long", "high", "fuse_low", "fuse", "classify"),
        forward=scores,
        inputs=_inputs,
    ),
}
