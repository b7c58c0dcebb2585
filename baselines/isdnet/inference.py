"""ISDNet's inference: the whole image in one pass.

As released, labels are the arg max of probabilities, computed from upsampled scores at 1/8."""

import torch
from torch import Tensor

from baselines.isdnet.model import DEEP_SCALE, ISDNet, resize, shrunk
from baselines.isdnet.spec import Spec
from bench.errors import UserError
from bench.method import NetworkInput, Strategy
from bench.tiling import Size, labels_of

LEAST_PX = 5
"""Shortest side for two levels of the Laplacian pyramid."""


def scores(network: ISDNet, x: Tensor, spec: Spec) -> Tensor:
    """A normalised image (1, 3, H, W) on the network's device -> scores (1, K, H, W).

    Maps of the image's size are freed after their last use; with `kept-maps` they stay alive to the
    end, as in the released code.
    """
    kept: list[Tensor] | None = [x] if spec.quirk("kept-maps") else None
    like = x[:, :0]  # keeps the size without the pixels
    _, feature = network.deep_feature(shrunk(x, DEEP_SCALE, spec.quirk("nearest-input")))
    if spec.quirk("idle-classifier"):
        network.pyramid.logits(feature)
    x = _shallow_input(network, x, kept)
    eighth, sixteenth = network.shallow_maps(x, kept)
    del x
    joined = network.fuse16(sixteenth, network.context(feature)).joined
    joined = network.fuse8(eighth, joined).joined
    return resize(network.classify(joined), like.shape[-2:])


def _shallow_input(network: ISDNet, x: Tensor, kept: list[Tensor] | None) -> Tensor:
    """The two levels of residuals side by side: (1, 6, H, W)."""
    first, half = network.residuals(x)
    second = resize(half, x.shape[-2:])
    if kept is not None:
        kept += [first, half, second]
    return torch.cat([first, second], 1)


def whole(network: ISDNet, image: Tensor, spec: Spec) -> Tensor:
    """The image in one piece, at its own resolution or at the spec's `test_scale`.

    Raises:
        UserError: the image is smaller than 5 x 5 px.
    """
    height, width = image.shape[-2:]
    if min(height, width) < LEAST_PX:
        raise UserError(
            f"ISDNet cannot process an image of {height} x {width} px: it needs {LEAST_PX} px a side."
        )
    total = _probabilities(network, image, spec)
    if spec.test_flip:
        total += _probabilities(network, image.flip(-1), spec).flip(-1)
    return labels_of(total[0]).to(image.device)


def _probabilities(network: ISDNet, image: Tensor, spec: Spec) -> Tensor:
    found = scores(network, _input(network, image, spec.test_scale), spec)
    return resize(found, image.shape[-2:]).softmax(1)


def _input(network: ISDNet, image: Tensor, scale: float) -> Tensor:
    x = network.normalise(image[None])
    if scale == 1:
        return x
    size = _scaled((x.shape[-2], x.shape[-1]), scale)
    return torch.nn.functional.interpolate(x, size, mode="bilinear", align_corners=False)


def _scaled(size: Size, scale: float) -> Size:
    height, width = (max(int(side * scale), LEAST_PX) for side in size)
    return height, width


def _inputs(spec: Spec, height_px: int, width_px: int) -> list[NetworkInput]:
    """The whole image twice: shrunk for the deep branch, and as it is for the shallow one."""
    height, width = size = _scaled((height_px, width_px), spec.test_scale)
    deep = (max(height // DEEP_SCALE, 1), max(width // DEEP_SCALE, 1))
    return [
        NetworkInput.whole(height_px, width_px, deep, "whole image (deep branch)"),
        NetworkInput.whole(height_px, width_px, size, "whole image (shallow branch)"),
    ]


STRATEGIES = {
    "whole": Strategy(
        whole,
        ("backbone", "pyramid", "reduce", "shallow", "fuse16", "fuse8", "classify"),
        forward=scores,
        inputs=_inputs,
    ),
}
