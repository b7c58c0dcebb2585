"""SGNet's one phase: patches with their surroundings, and three losses."""

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from baselines.sgnet.inference import corners, enlarged, surroundings
from baselines.sgnet.model import SGNet, located
from baselines.sgnet.spec import Spec
from bench.optim import (
    UNLABELLED,
    Back,
    Phase,
    View,
    draw,
    flip_and_turn,
    focal_loss,
    propagate,
)
from bench.tiling import Box, resize


def phases(network: SGNet, spec: Spec) -> list[Phase]:
    """The only phase, which trains the whole network."""
    return [Phase("train", (network,), whole_batch=True, judged_by="surround")]


def view(image: Tensor, label: Tensor, spec: Spec, phase: str, rng: Generator) -> View:
    """`image` (3, S, S) uint8 and `label` (S, S) uint8: a patch anywhere and its surroundings,
    mirrored and turned at random; smaller images are padded with black, unlabelled pixels."""
    image, label = flip_and_turn(image, label, rng)
    down, across = (max(spec.context_px - side, 0) for side in label.shape)
    image = F.pad(image, (0, across, 0, down))
    label = F.pad(label, (0, across, 0, down), value=UNLABELLED)
    height, width = label.shape
    side = spec.patch_px
    box = Box(draw(height - side + 1, rng), draw(width - side + 1, rng), side, side)
    around = surroundings(box, (height, width), spec)
    views = {"patch": box.of(image), "label": box.of(label)}
    views |= {"around": around.of(image), "label_around": around.of(label)}
    return {key: value.contiguous() for key, value in views.items()} | {
        "corner": corners([box], [around])[0]
    }


def backward(network: SGNet, views: list[View], spec: Spec, phase: str, back: Back) -> float:
    """Accumulate the gradients of one optimiser step; returns the loss."""
    batch = {key: torch.stack([view[key] for view in views]) for key in views[0]}
    return propagate(torch.stack([*losses(network, batch, spec).values()]).sum(), back)


def losses(network: SGNet, batch: View, spec: Spec) -> dict[str, Tensor]:
    """Each weighted term of the loss, of stacked views."""
    label, label_around = batch["label"], batch["label_around"]
    found = network(batch["patch"], batch["around"], batch["corner"])
    scores = enlarged(found.patch, (label.shape[-2], label.shape[-1]))
    around = resize(found.around, (label_around.shape[-2], label_around.shape[-1]))
    seen = located(found.around, batch["corner"], (found.patch.shape[-2], found.patch.shape[-1]))
    apart = (found.patch.softmax(1) - seen.softmax(1)).abs().mean()
    return {
        "patch": focal_loss(scores, label, gamma=0, whole_batch=True),
        "around": spec.context_weight * focal_loss(around, label_around, gamma=0, whole_batch=True),
        "agreement": spec.agreement_weight * apart,
    }
