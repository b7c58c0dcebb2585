"""RUE's one phase: crops of the images, and three losses, one of them weighted by uncertainty."""

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from baselines.rue.inference import Streams, streams
from baselines.rue.model import RUE, resize
from baselines.rue.spec import Spec
from bench.errors import UserError
from bench.optim import (
    UNLABELLED,
    Back,
    Phase,
    View,
    distorted_crop,
    mean_over_processes,
    process_count,
    propagate,
    weights_by_class,
)

POWER = 6
"""Of the factors of a pixel's loss."""


def phases(network: RUE, spec: Spec) -> list[Phase]:
    """The only phase, which trains the whole network."""
    return [Phase("train", (network,), whole_batch=True, judged_by="whole")]


def view(image: Tensor, label: Tensor, spec: Spec, phase: str, rng: Generator) -> View:
    """`image` (3, S, S) uint8 and `label` (S, S) uint8: a `distorted_crop`."""
    return distorted_crop(
        image,
        label,
        spec.crop_px,
        rng,
        rotate=spec.rotate,
        any_angle=spec.quirk("any-angle"),
        distort=spec.distort,
        by_class=spec.sample_classes,
    )


def backward(network: RUE, views: list[View], spec: Spec, phase: str, back: Back) -> float:
    """Accumulate the gradients of one optimiser step; returns the loss.

    Raises:
        UserError: a step has one image alone, or the released code, which the spec reproduces,
            crashes on crops of this size.
    """
    if len(views) * process_count() < 2 and network.training:
        raise UserError(
            "RUE cannot train on one image a step: batch norm of its 1 x 1 maps would have one value "
            "a channel. Set the phase's `batch` to 2 or more."
        )
    images = torch.stack([view["image"] for view in views])
    labels = torch.stack([view["label"] for view in views])
    found = streams(network, network.normalise(images), spec, spec.train_patches)
    loss = torch.stack([*losses(network, found, labels, spec).values()]).sum()
    return propagate(loss, back)


def losses(network: RUE, found: Streams, labels: Tensor, spec: Spec) -> dict[str, Tensor]:
    """Each weighted term of the loss, of what the streams gave and labels (N, H, W) uint8."""
    auxiliary = _cross_entropy(network.auxiliary(found.deep.third), labels, spec)
    return {
        "deep": _cross_entropy(found.deep.logits, labels, spec),
        "final": _cross_entropy(found.logits, labels, spec, loss_weights(found.weights)),
        "auxiliary": spec.auxiliary_weight * auxiliary,
    }


def loss_weights(weights: Tensor) -> Tensor:
    """Factors of a pixel's loss (the complementer) from the shallow stream's weights, of any shape;
    no gradient flows through them."""
    return (1 + weights.detach()) ** POWER


def _cross_entropy(
    scores: Tensor, labels: Tensor, spec: Spec, weights: Tensor | None = None
) -> Tensor:
    """The weighted mean over labelled pixels, of scores (N, K, h, w) and weights (N, 1, h, w) that
    are both enlarged first.

    With `ignored-in-mean`, as released, pixels without a label count in the mean, as 0; with
    `unnormalised-loss` the sum of weighted losses is divided by the number of pixels instead of the
    sum of weights, so that its scale falls with the entropy.

    Raises:
        UserError: there are not as many `class_weights` as classes.
    """
    size = labels.shape[-2:]
    pixels = F.cross_entropy(
        resize(scores, size), labels.long(), ignore_index=UNLABELLED, reduction="none"
    )
    if spec.class_weights:
        known = torch.where(labels != UNLABELLED, labels, 0).long()
        pixels = pixels * weights_by_class(spec.class_weights, known, scores)
    counted = torch.ones_like(pixels)
    if not spec.quirk("ignored-in-mean"):
        counted = (labels != UNLABELLED).to(pixels)
    if weights is not None:
        factors = resize(weights, size)[:, 0]
        pixels = factors * pixels
        if not spec.quirk("unnormalised-loss"):
            counted = factors * counted
    total = mean_over_processes(counted.sum())
    return pixels.sum() / (total + (total == 0))
