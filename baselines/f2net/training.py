"""F2Net's one phase: crops of the images, and three losses, one of them on gradients."""

import torch
from torch import Generator, Tensor

from baselines.f2net.inference import Features, features
from baselines.f2net.model import F2Net
from baselines.f2net.spec import Spec
from bench.optim import Back, Phase, View, flip_and_turn, focal_loss, propagate, random_crop
from bench.tiling import resize


def phases(network: F2Net, spec: Spec) -> list[Phase]:
    """The only phase, which trains the whole network."""
    return [Phase("train", (network,), whole_batch=True, judged_by="whole")]


def view(image: Tensor, label: Tensor, spec: Spec, phase: str, rng: Generator) -> View:
    """`image` (3, S, S) uint8 and `label` (S, S) uint8: a crop, mirrored and turned at random."""
    image, label = random_crop(image, label, spec.crop_px, rng)
    image, label = flip_and_turn(image, label, rng)
    return {"image": image.contiguous(), "label": label.contiguous()}


def backward(network: F2Net, views: list[View], spec: Spec, phase: str, back: Back) -> float:
    """Accumulate the gradients of one optimiser step; returns the loss."""
    images = torch.stack([view["image"] for view in views])
    labels = torch.stack([view["label"] for view in views])
    found = features(network, network.normalise(images), spec)
    return propagate(torch.stack([*losses(network, found, labels, spec).values()]).sum(), back)


def losses(network: F2Net, found: Features, labels: Tensor, spec: Spec) -> dict[str, Tensor]:
    """Each weighted term of the loss, of what `features` gave and labels (N, H, W) uint8."""
    scores = resize(found.logits, (labels.shape[-2], labels.shape[-1]))
    entropy = focal_loss(scores, labels, gamma=0, whole_batch=True)
    terms = {"entropy": entropy}
    if spec.alignment_weight:
        terms["alignment"] = spec.alignment_weight * network.alignment(found.low, found.high)
    if spec.balance_weight:
        norms = gradient_norms(network, entropy)
        terms["balance"] = spec.balance_weight * (norms - norms.mean()).abs().sum()
    return terms


def gradient_norms(network: F2Net, loss: Tensor) -> Tensor:
    """Norm of a loss's gradient by the last block of each branch: (3,), itself with a gradient.

    Of several processes each takes the gradient of its own images.
    """
    norms = []
    last = network.high.get_submodule("stages.3.1")
    for block in (network.short.pyramid.join, network.long.blocks[-1], last):
        own = [parameter for parameter in block.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(loss, own, create_graph=True)
        norms.append(torch.stack([one.square().sum() for one in gradients]).sum().sqrt())
    return torch.stack(norms)
