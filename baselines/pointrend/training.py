"""PointRend's one phase: crops of the images, and a loss on coarse scores and on points."""

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from baselines.pointrend.model import PointRend, sample, uncertainty
from baselines.pointrend.spec import Spec
from bench.optim import (
    UNLABELLED,
    Back,
    Phase,
    View,
    flip_and_turn,
    focal_loss,
    propagate,
    random_crop,
)
from bench.tiling import resize


def phases(network: PointRend, spec: Spec) -> list[Phase]:
    """The only phase, which trains the whole network."""
    return [Phase("train", (network,), whole_batch=True, judged_by="whole")]


def view(image: Tensor, label: Tensor, spec: Spec, phase: str, rng: Generator) -> View:
    """A random crop of `image` (3, S, S) uint8 and `label` (S, S) uint8, mirrored and turned."""
    image, label = random_crop(image, label, spec.crop_px, rng)
    image, label = flip_and_turn(image, label, rng)
    return {"image": image, "label": label}


def backward(network: PointRend, views: list[View], spec: Spec, phase: str, back: Back) -> float:
    """Accumulate the gradients of one optimiser step; returns the loss."""
    images = torch.stack([view["image"] for view in views])
    labels = torch.stack([view["label"] for view in views])
    loss = torch.stack([*losses(network, images, labels, spec).values()]).sum()
    return propagate(loss, back)


def losses(network: PointRend, images: Tensor, labels: Tensor, spec: Spec) -> dict[str, Tensor]:
    """Both terms of the loss, of weight 1, of images (N, 3, H, W) uint8 and labels (N, H, W)
    uint8."""
    fine, coarse = network.maps(network.normalise(images))
    points = point_loss(network, fine, coarse, labels, spec)
    full = resize(coarse, (images.shape[-2], images.shape[-1]))
    return {"coarse": _entropy(full, labels, spec), "points": points}


def point_loss(
    network: PointRend, fine: Tensor, coarse: Tensor, labels: Tensor, spec: Spec
) -> Tensor:
    """The loss of points that are drawn anew; a point has the label of the pixel that contains
    it."""
    places = drawn(coarse.detach(), spec)
    found = network.point(sample(fine, places), sample(coarse, places))
    at_places = sample(labels[:, None].float(), places, "nearest")  # (N, 1, P)
    return _entropy(found[..., None], at_places[:, 0, :, None].to(torch.uint8), spec)


def _entropy(scores: Tensor, labels: Tensor, spec: Spec) -> Tensor:
    """The mean over labelled pixels; as released, over all pixels, those without a label being
    0."""
    if not spec.quirk("ignored-in-mean"):
        return focal_loss(scores, labels, spec.focal_gamma, whole_batch=True)
    target = labels.long()
    return F.cross_entropy(scores, target, ignore_index=UNLABELLED, reduction="none").mean()


def drawn(coarse: Tensor, spec: Spec) -> Tensor:
    """Points (N, P, 2) for the loss: of many uniform ones those where the coarse scores
    (N, K, h, w) are least certain, and some more uniform ones."""
    count = len(coarse)
    uncertain = int(spec.uncertain * spec.points)
    many = torch.rand(count, int(spec.oversampling * spec.points), 2, device=coarse.device)
    chosen = uncertainty(sample(coarse, many)).topk(uncertain).indices  # (N, P')
    kept = many.gather(1, chosen[..., None].expand(-1, -1, 2))
    return torch.cat([kept, torch.rand(count, spec.points - uncertain, 2, device=coarse.device)], 1)
