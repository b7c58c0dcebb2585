"""CascadePSP's two phases: the base network on shrunk images, and the refiner on damaged masks of
single classes."""

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from baselines.cascadepsp.damage import damaged
from baselines.cascadepsp.model import CascadePSP
from baselines.cascadepsp.spec import Spec
from bench.optim import (
    UNLABELLED,
    Back,
    Phase,
    View,
    draw,
    flip_and_turn,
    focal_loss,
    mean_over_processes,
    propagate,
    random_crop,
    uniform,
)
from bench.tiling import shrink_image, shrink_label

EDGES = 5.0
"""Weight of the edges' loss."""


def phases(network: CascadePSP, spec: Spec) -> list[Phase]:
    """The base network, then the refiner, which trains independently of it."""
    return [
        Phase("base", (network.base,), whole_batch=True, judged_by="base"),
        Phase("refiner", (network.refiner,), whole_batch=True, judged_by="cascade"),
    ]


def view(image: Tensor, label: Tensor, spec: Spec, phase: str, rng: Generator) -> View:
    """The training view of `image` (3, S, S) uint8 and `label` (S, S) uint8.

    `base`: both shrunk. `refiner`: a crop, with the mask of one of its classes, drawn evenly (1
    inside, 0 outside, 255 unlabelled), and as `seed` the same damaged.
    """
    image, label = flip_and_turn(image, label, rng)
    if phase == "base":
        size = (spec.base_px, spec.base_px)
        return {"image": shrink_image(image, size), "label": shrink_label(label, size)}
    image, label = random_crop(image, label, spec.crop_px, rng)
    there = label[label != UNLABELLED].long().bincount().nonzero()[:, 0]
    inside = torch.zeros_like(label, dtype=torch.bool)
    if len(there):
        inside = label == there[draw(len(there), rng)]
    mask = torch.where(label == UNLABELLED, UNLABELLED, inside.to(torch.uint8))
    return {"image": distorted(image, rng), "mask": mask, "seed": damaged(inside, rng)}


def backward(network: CascadePSP, views: list[View], spec: Spec, phase: str, back: Back) -> float:
    """Accumulate the gradients of one optimiser step; returns the loss."""
    images = network.normalise(torch.stack([view["image"] for view in views]))
    if phase == "base":
        labels = torch.stack([view["label"] for view in views])
        loss = focal_loss(network.base(images), labels, spec.focal_gamma, whole_batch=True)
    else:
        masks = torch.stack([view["mask"] for view in views])[:, None]
        seeds = torch.stack([view["seed"] for view in views])[:, None]
        loss = torch.stack([*losses(network, images, masks, seeds).values()]).sum()
    return propagate(loss, back)


def losses(network: CascadePSP, images: Tensor, masks: Tensor, seeds: Tensor) -> dict[str, Tensor]:
    """Every weighted term of the refiner's loss, a mean over labelled pixels.

    Args:
        images: normalised, (N, 3, S, S).
        masks: true ones, (N, 1, S, S) uint8: 0, 1 or 255.
        seeds: damaged ones, (N, 1, S, S) bool.
    """
    known = (masks != UNLABELLED).float()
    true = (masks == 1).float()
    count = mean_over_processes(known.sum()).clamp(min=1)

    def mean(term: Tensor) -> Tensor:
        return (term * known).sum() / count

    def entropy(scores: Tensor) -> Tensor:
        return mean(F.binary_cross_entropy_with_logits(scores, true, reduction="none"))

    def distance(scores: Tensor) -> tuple[Tensor, Tensor]:
        off = scores.sigmoid() - true
        return mean(off.abs()), mean(off.square())

    found = {}
    first, second, third = network.passes(images, 2 * seeds.float() - 1)
    for number, scores in enumerate((first, second, third), 1):
        found[f"1/8, pass {number}"] = entropy(scores[0])
    for number, scores in enumerate((second, third), 2):
        absolute, square = distance(scores[1])
        found[f"1/4, pass {number}"] = 0.5 * entropy(scores[1]) + 0.25 * absolute + 0.25 * square
    absolute, square = distance(third[2])
    found["1/1"] = absolute + square
    inside = third[2].sigmoid() * known
    found["edges"] = EDGES * mean((edges(inside) - edges(true * known)).abs())
    return found


def edges(map: Tensor) -> Tensor:
    """How steep a smoothed map (N, 1, H, W) is: Sobel's magnitude, never quite 0, where a square
    root has no gradient."""
    across = map.new_tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 4
    kernels = torch.stack([across, across.T])[:, None]
    slopes = F.conv2d(F.avg_pool2d(map, 3, 1, 1), kernels, padding=1)  # (N, 2, H, W)
    # Not `sqrt`: MKL's differs between processors.
    return (slopes.square().sum(1, keepdim=True) + 1e-4).rsqrt().reciprocal()


def distorted(image: Tensor, rng: Generator) -> Tensor:
    """Brightness, contrast and saturation of (3, H, W) uint8 changed a little; one in ten is
    grey."""
    from torchvision.transforms import functional  # takes seconds to import

    def around(reach: float) -> float:
        return 1 + reach * (2 * uniform(rng) - 1)

    image = functional.adjust_brightness(image, around(0.2))
    image = functional.adjust_contrast(image, around(0.05))
    image = functional.adjust_saturation(image, around(0.05))
    if uniform(rng) < 0.1:
        image = functional.rgb_to_grayscale(image, 3)
    return image
