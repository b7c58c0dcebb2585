"""The three phases of GLNet (section 3.3), and the local branch trained alone."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from bench.learning import flip_and_turn, focal_loss
from bench.method import Phase, View
from bench.tiles import (
    Box,
    Merger,
    crop,
    crop_all,
    cut,
    grid,
    groups,
    resize,
    shrink_image,
    shrink_label,
)
from glnet.model import GLNet, Maps
from glnet.spec import Spec

Back = Callable[[Tensor], None]


def phases(network: nn.Module, spec: Spec) -> list[Phase]:
    """The phases of the spec; what an earlier one learnt is where the next one starts."""
    assert isinstance(network, GLNet)

    def begin_local_to_global() -> None:
        # The borrowing FPN has other shapes but for its classifier; the official code shares that
        # one.
        source, target = network.global_branch, network.global_borrowing
        target.encoder.load_state_dict(source.encoder.state_dict())
        target.fpn.classify.load_state_dict(source.fpn.classify.state_dict())
        network.aggregation_borrowing.load_state_dict(network.aggregation.state_dict())

    def phase(name: str) -> Phase:
        if name == "global":
            return Phase(name, (network.global_branch,), whole_batch=True)
        if name == "global-to-local":
            return Phase(name, (network.local_branch, network.aggregation))
        if name == "local-to-global":
            moving = (network.global_borrowing, network.aggregation_borrowing)
            return Phase(name, moving, begin_local_to_global)
        return Phase(name, (network.local_alone,))

    return [phase(name) for name in spec.phases]


def view(image: Tensor, label: Tensor, spec: Spec, phase: str, rng: Generator) -> View:
    """What a phase sees of one image.

    Returns:
        `size` (2,) the image's (H, W); `global` (3, G, G) uint8 and `global_label` (G/4, G/4) of
        the whole image; and in all phases but `global`: `patches` (P, 3, h, w) uint8, `boxes` (P,
        4), and for the patches that are learnt from `chosen` (Q,) and `labels` (Q, h/4, w/4).
    """
    image, label = flip_and_turn(image, label, rng)
    side = spec.global_px
    seen = {
        "size": torch.tensor(image.shape[-2:]),
        "global": shrink_image(image, (side, side)),
        "global_label": shrink_label(label, (quarter(side), quarter(side))),
    }
    if phase == "global":
        return seen
    boxes = grid(image.shape[-2], image.shape[-1], spec.patch_px, spec.overlap_px)
    chosen = torch.arange(len(boxes))
    if spec.patches_per_image is not None:
        chosen = torch.randperm(len(boxes), generator=rng)[: spec.patches_per_image]
    if (
        phase != "local-to-global"
    ):  # only there the other patches matter: they are merged into what is lent
        boxes = [boxes[i] for i in chosen.tolist()]
        chosen = torch.arange(len(boxes))
    height, width = quarter(boxes[0].height), quarter(boxes[0].width)
    labels = cut(label, [boxes[i] for i in chosen.tolist()])
    return seen | {
        "patches": cut(image, boxes),
        "boxes": torch.tensor(boxes),
        "chosen": chosen,
        "labels": shrink_label(labels, (height, width)),
    }


def quarter(side_px: int) -> int:
    """The side of the logits of an input: two halvings that round up."""
    return -(-side_px // 4)


def backward(network: nn.Module, views: list[View], spec: Spec, phase: str, back: Back) -> float:
    """Accumulate the gradients of one optimiser step; returns the loss.

    Every term is a mean over the pixels of all patches of all views, so that the sub-batch and the
    number of patches do not change the step. Differs from the official code: it sums over groups of
    patches and over images."""
    assert isinstance(network, GLNet)
    if phase == "global":
        return _global(network, views, spec, back)
    step = {
        "local": _local_alone,
        "global-to-local": _global_to_local,
        "local-to-global": _local_to_global,
    }[phase]
    share = 1 / len(views)
    return share * sum(step(network, view, spec, lambda loss: back(loss * share)) for view in views)


def _global(network: GLNet, views: list[View], spec: Spec, back: Back) -> float:
    images = network.normalise(torch.stack([view["global"] for view in views]))
    label = torch.stack([view["global_label"] for view in views])
    logits = network.global_branch(images).logits
    loss = focal_loss(logits, label, spec.focal_gamma, whole_batch=True)
    back(loss)
    return float(loss.detach())


def _local_alone(network: GLNet, view: View, spec: Spec, back: Back) -> float:
    total = 0.0
    for group in _groups(view, spec):
        logits = network.local_alone(network.normalise(view["patches"][group])).logits
        loss = focal_loss(logits, view["labels"][group], spec.focal_gamma)
        total += _part(loss, group, view, back)
    return total


def _global_to_local(network: GLNet, view: View, spec: Spec, back: Back) -> float:
    boxes, size = _boxes(view), _size(view)
    with torch.no_grad():
        whole = network.global_branch(network.normalise(view["global"][None]))
    total = 0.0
    for group in _groups(view, spec):
        places = [boxes[i] for i in group]
        patches = network.normalise(view["patches"][group])
        local = network.local_branch(patches, Maps(*crop_all(whole.maps, places, size)))
        shared = crop(whole.fused, places, size)
        logits = network.aggregation(local.fused, shared)
        label = view["labels"][group]
        target = resize(shared, (local.fused.shape[-2], local.fused.shape[-1]))
        loss = (
            focal_loss(local.logits, label, spec.focal_gamma)
            + focal_loss(logits, label, spec.focal_gamma)
            + spec.regularisation * F.mse_loss(local.fused, target)
        )
        total += _part(loss, group, view, back)
    return total


def _local_to_global(network: GLNet, view: View, spec: Spec, back: Back) -> float:
    boxes, size = _boxes(view), _size(view)
    small = network.normalise(view["global"][None])
    chosen = view["chosen"].tolist()
    kept: dict[int, Tensor] = {}
    with torch.no_grad():
        lender = network.global_branch(small).maps
        merger = Merger(lender.features, size)
        for group in groups(range(len(boxes)), spec.sub_batch):
            places = [boxes[i] for i in group]
            patches = network.normalise(view["patches"][list(group)])
            local = network.local_branch(patches, Maps(*crop_all(lender, places, size)))
            merger.add(local.maps, places)
            kept |= {i: one for i, one in zip(group, local.fused, strict=True) if i in chosen}
    whole = network.global_borrowing(small, Maps(*merger.mean()))
    # The groups' gradients gather at a copy of the fused map and join at the real one, so that the
    # branch is walked back once; the official code walks it once a group, to the same sum.
    fused = whole.fused.detach().requires_grad_()
    total = 0.0
    for group in _groups(view, spec):
        places = [boxes[chosen[i]] for i in group]
        local_fused = torch.stack([kept[chosen[i]] for i in group])
        logits = network.aggregation_borrowing(local_fused, crop(fused, places, size))
        loss = focal_loss(logits, view["labels"][group], spec.focal_gamma)
        total += _part(loss, group, view, back)
    label = view["global_label"][None]
    own = focal_loss(whole.logits, label, spec.focal_gamma)
    gathered = fused.grad
    whole.fused.register_hook(lambda gradient: gradient + gathered)
    back(own)
    return total + float(own.detach())


def _part(loss: Tensor, group: list[int], view: View, back: Back) -> float:
    """One group's share of the mean over all patches that are learnt from."""
    loss = loss * (len(group) / len(view["labels"]))
    back(loss)
    return float(loss.detach())


def _groups(view: View, spec: Spec) -> list[list[int]]:
    return [list(group) for group in groups(range(len(view["labels"])), spec.sub_batch)]


def _boxes(view: View) -> list[Box]:
    return [Box(*numbers) for numbers in view["boxes"].tolist()]


def _size(view: View) -> tuple[int, int]:
    height, width = view["size"].tolist()
    return height, width
