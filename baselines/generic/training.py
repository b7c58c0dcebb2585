"""One phase: crops, or shrunk images."""

import torch
from torch import Generator, Tensor, nn

from baselines.generic.model import Colour, Network
from baselines.generic.spec import Spec
from bench.optim import Back, Phase, View, flip_and_turn, focal_loss, propagate, random_crop
from bench.tiling import shrink_image, shrink_label


def phases(network: nn.Module, spec: Spec) -> list[Phase]:
    """The only phase, which trains the whole network, or all but a frozen encoder."""
    colour = isinstance(network, Colour)
    judge = "whole" if colour else spec.train_on
    trains: tuple[nn.Module, ...] = (network,)
    if isinstance(network, Network) and spec.frozen_encoder:
        parts = network.network.named_children()
        trains = tuple(part for name, part in parts if name != "encoder")
    return [Phase("train", trains, whole_batch=not colour, judged_by=judge)]


def view(image: Tensor, label: Tensor, spec: Spec, phase: str, rng: Generator) -> View:
    """`image` (3, S, S) uint8 and `label` (S, S) uint8: a random crop, or the whole image made
    square."""
    side = spec.size_px
    if spec.network == "colour":  # uses every pixel, of any image size
        return {"image": image, "label": label}
    if spec.train_on == "downsample":
        image, label = shrink_image(image, (side, side)), shrink_label(label, (side, side))
    else:
        image, label = random_crop(image, label, side, rng, spec.sample_classes)
    image, label = flip_and_turn(image, label, rng)
    return {"image": image, "label": label}


def backward(network: nn.Module, views: list[View], spec: Spec, phase: str, back: Back) -> float:
    """Accumulate the gradients of one optimiser step; returns the loss (`colour` has neither)."""
    if isinstance(network, Colour):
        for view in views:
            network.observe(view["image"][None], view["label"][None])
        return 0.0
    images = torch.stack([view["image"] for view in views])
    labels = torch.stack([view["label"] for view in views])
    assert isinstance(network, Network)
    losses = [
        weight * focal_loss(scores, labels, spec.focal_gamma, True, spec.class_weights)
        for weight, scores in network.heads(images)
    ]
    loss = torch.stack(losses).sum()
    return propagate(loss, back)
