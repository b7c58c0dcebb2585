"""ISDNet's one phase: crops of the images, and seven losses."""

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from baselines.isdnet.model import DEEP_SCALE, ISDNet, resize, shrunk
from baselines.isdnet.spec import Spec
from bench.errors import UserError
from bench.optim import (
    UNLABELLED,
    Back,
    Phase,
    View,
    distorted_crop,
    focal_loss,
    process_count,
    propagate,
    to_bytes,
)


def phases(network: ISDNet, spec: Spec) -> list[Phase]:
    """The only phase, which trains the whole network."""
    return [Phase("train", (network,), whole_batch=True, judged_by="whole")]


def view(image: Tensor, label: Tensor, spec: Spec, phase: str, rng: Generator) -> View:
    """`image` (3, S, S) uint8 and `label` (S, S) uint8: a `distorted_crop`."""
    if spec.train_scale != 1:
        image, label = _scaled(image, label, spec.train_scale)
    return distorted_crop(
        image,
        label,
        spec.crop_px,
        rng,
        rotate=spec.rotate,
        any_angle=spec.quirk("any-angle"),
        distort=spec.distort,
    )


def backward(network: ISDNet, views: list[View], spec: Spec, phase: str, back: Back) -> float:
    """Accumulate the gradients of one optimiser step; returns the loss.

    Raises:
        UserError: a step has one image alone.
    """
    if len(views) * process_count() < 2 and network.training:
        raise UserError(
            "ISDNet cannot train on one image a step: batch norm of its 1 x 1 maps would have "
            "one value a channel. Set the phase's `batch` to 2 or more."
        )
    images = torch.stack([view["image"] for view in views])
    labels = torch.stack([view["label"] for view in views])
    loss = torch.stack([*losses(network, images, labels, spec).values()]).sum()
    return propagate(loss, back)


def losses(network: ISDNet, images: Tensor, labels: Tensor, spec: Spec) -> dict[str, Tensor]:
    """Each weighted term of the loss, of images (N, 3, H, W) uint8 and labels (N, H, W) uint8.

    In the released code the auxiliary classifier named 16 gets the fusion at 1/8 and the one named
    8 that at 1/16; both are discarded after training, so that only their names and initial weights
    differ.
    """
    x = network.normalise(images)
    third, feature = network.deep_feature(shrunk(x, DEEP_SCALE, spec.quirk("nearest-input")))
    first, second = network.residuals(x)
    second = resize(second, x.shape[-2:])
    eighth, sixteenth = network.shallow_maps(torch.cat([first, second], 1))
    deep = network.context(feature)
    coarse = network.fuse16(sixteenth, deep)
    fine = network.fuse8(eighth, coarse.joined)
    restored, residuals = network.restore(deep)
    at_16, at_8 = network.classify_16, network.classify_8
    if spec.quirk("crossed-classifiers"):
        at_16, at_8 = at_8, at_16
    scores = {
        "deep": network.pyramid.logits(feature),
        "final": network.classify(network.dropout(fine.joined)),
        "context at 1/8": at_8(fine.context),
        "context at 1/16": at_16(coarse.context),
        "auxiliary": network.auxiliary(third),
    }
    found = {
        name: _cross_entropy(resize(one, x.shape[-2:]), labels, spec)
        for name, one in scores.items()
    }
    found["auxiliary"] = spec.auxiliary_weight * found["auxiliary"]
    detail = F.mse_loss(resize(residuals, x.shape[-2:]), first + second)
    found["detail"] = spec.detail_weight * detail
    found["affinity"] = spec.affinity_weight * affinity_loss(deep, restored)
    return found


def affinity_loss(deep: Tensor, restored: Tensor) -> Tensor:
    """How far the similarities of the deep feature's places (N, C, h, w) are from those of a finer
    map (N, C, H, W), from which no gradient flows: the mean over all pairs of places."""

    def similarities(map: Tensor) -> Tensor:
        x = map.flatten(2)  # (N, C, P)
        x = x / (torch.linalg.vector_norm(x, dim=2, keepdim=True) + 1e-6)
        found: Tensor = x.transpose(1, 2) @ x  # (N, P, P)
        return found

    with torch.no_grad():
        target = similarities(resize(restored, deep.shape[-2:]))
    return F.l1_loss(similarities(deep), target)


def _cross_entropy(scores: Tensor, labels: Tensor, spec: Spec) -> Tensor:
    """The mean over labelled pixels; as released, over all pixels, those without a label being
    0."""
    if not spec.quirk("ignored-in-mean"):
        return focal_loss(scores, labels, 0, whole_batch=True)
    target = labels.long()
    return F.cross_entropy(scores, target, ignore_index=UNLABELLED, reduction="none").mean()


def _scaled(image: Tensor, label: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Both at a multiple of their size: the image bilinear without antialiasing, as OpenCV has
    it, the label nearest."""
    size = [max(round(side * scale), 1) for side in label.shape]
    image = F.interpolate(image[None].float(), size, mode="bilinear", align_corners=False)[0]
    label = F.interpolate(label[None, None], size, mode="nearest")[0, 0]
    return to_bytes(image), label
