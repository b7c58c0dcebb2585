"""RUE's inference: the whole image in one pass of the deep stream, its least certain patches in one
of the shallow stream."""

from typing import NamedTuple

from torch import Tensor

from baselines.rue.model import DEEP_SCALE, RUE, Deep, shrunk
from baselines.rue.patches import cut, grid_of, join, patch_scores, select, uncertainty
from baselines.rue.spec import Spec
from bench.method import NetworkInput, Strategy
from bench.tiling import Box, labels_of, resize


class Streams(NamedTuple):
    """What both streams give of images."""

    deep: Deep
    scores: Tensor
    """Of each patch: (N, P)."""
    chosen: Tensor
    """Numbers of the patches that the shallow stream saw: (N, k)."""
    weights: Tensor
    """Of the shallow stream in the sum of both: (N, 1, h, w)."""
    logits: Tensor
    """(N, K, h, w), at about 1/8 of the image."""


def streams(network: RUE, x: Tensor, spec: Spec, patches: int) -> Streams:
    """Normalised images (N, 3, H, W), with so many patches along a side.

    The images and the shallow stream's maps are freed after their last use; with `kept-maps` the
    images, the patches twice and the stream's first map stay alive to the end, as in the released
    code.

    Raises:
        UserError: the released code crashes at this size.
    """
    kept: list[Tensor] | None = [x] if spec.quirk("kept-maps") else None
    grid = grid_of((x.shape[-2], x.shape[-1]), patches, spec)
    deep = network.deep(shrunk(x, DEEP_SCALE, spec.quirk("nearest-input")))
    weights = uncertainty(deep, grid.cells, spec) / 2
    scores = patch_scores(deep, weights, grid, spec)
    chosen = select(scores, spec)
    x = cut(x, grid, chosen)
    if kept is not None:
        kept.append(x.clone())
    fine, seen = join(network.shallow.encode(x, kept), grid, chosen)
    coarse = resize(network.reduce(deep.feature), grid.cells)
    share = weights * seen
    logits = network.classify((1 - share) * coarse + share * fine)
    return Streams(deep, scores, chosen, weights, logits)


def scores(network: RUE, x: Tensor, spec: Spec) -> Tensor:
    """A normalised image (1, 3, H, W) on the network's device -> scores (1, K, H, W)."""
    return resize(streams(network, x, spec, spec.patches).logits, (x.shape[-2], x.shape[-1]))


def whole(network: RUE, image: Tensor, spec: Spec) -> Tensor:
    """The image at its own resolution in one piece.

    Raises:
        UserError: the released code, which the spec reproduces, crashes at this size.
    """
    found = streams(network, network.normalise(image[None]), spec, spec.patches).logits
    return labels_of(resize(found, (image.shape[-2], image.shape[-1]))[0]).to(image.device)


def _inputs(spec: Spec, height_px: int, width_px: int) -> list[NetworkInput]:
    """The whole image, shrunk for the deep stream; the shallow stream's patches where they are
    known without the image: where all are selected."""
    deep = (max(height_px // DEEP_SCALE, 1), max(width_px // DEEP_SCALE, 1))
    found = [NetworkInput.whole(height_px, width_px, deep, "whole image (deep stream)")]
    if spec.selected == 1 or spec.quirk("select-all"):
        grid = grid_of((height_px, width_px), spec.patches, spec)
        height, width = grid.patch_px
        found.append(
            NetworkInput.patches(
                [
                    Box(row * height, column * width, height, width)
                    for row in range(grid.rows)
                    for column in range(grid.columns)
                ]
            )
        )
    return found


STRATEGIES = {
    "whole": Strategy(
        whole,
        ("backbone", "pyramid", "residual", "shallow", "reduce", "classify", "idle"),
        forward=scores,
        inputs=_inputs,
    ),
}
