"""The three training phases of GLNet (section 3.3), and the local branch trained alone.

Branches that receive shared features use `glnet.fast.split_convolution`: the same losses and
gradients."""

from typing import Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from bench.errors import UserError
from bench.optim import (
    UNLABELLED,
    Back,
    PatchLosses,
    Phase,
    View,
    draw,
    flip_and_turn,
    focal_loss,
    pixel_by_class,
    process_count,
)
from bench.tiling import (
    Box,
    bounding_box,
    crop,
    cut,
    groups,
    relaxed,
    resize,
    shrink_image,
    shrink_label,
)
from glnet.fast.split_convolution import ComposedAggregation, aggregate, levels, pyramid
from glnet.inference import boxes_of, boxes_within, merger_of, shared_crops
from glnet.model import GLNet
from glnet.spec import Spec

Join = Literal["mean", "sum"]
Kept = tuple[list[Tensor], list[Tensor]]
"""A patch's last maps, four levels, and those that it received, if any."""


def phases(network: GLNet, spec: Spec) -> list[Phase]:
    """The phases of the spec; each starts from the weights of the one before."""

    def begin_local_to_global() -> None:
        # The receiving FPN has the same shapes in its classifier alone, which the official code
        # shares.
        source, target = network.global_branch, network.global_borrowing
        target.encoder.load_state_dict(source.encoder.state_dict())
        target.fpn.classify.load_state_dict(source.fpn.classify.state_dict())
        network.aggregation_borrowing.load_state_dict(network.aggregation.state_dict())

    def phase(name: str) -> Phase:
        if name == "global":
            return Phase(name, (network.global_branch,), whole_batch=True, judged_by=name)
        gradients: Join = "sum" if spec.quirk("summed-gradients") else "mean"
        if name == "global-to-local":
            moving = (network.local_branch, network.aggregation)
            judge = "coarse-to-fine" if spec.learn_in_box else name
            return Phase(name, moving, gradients=gradients, judged_by=judge)
        if name == "local-to-global":
            moving = (network.global_borrowing, network.aggregation_borrowing)
            judge = "coarse-to-fine-both-ways" if spec.learn_in_box else "collaborative"
            return Phase(name, moving, begin_local_to_global, True, gradients, judge)
        return Phase(name, (network.local_alone,), gradients=gradients, judged_by=name)

    return [phase(name) for name in spec.phases]


def view(image: Tensor, label: Tensor, spec: Spec, phase: str, rng: Generator) -> View:
    """The training view of one image, mirrored and turned at random; see `seen`."""
    image, label = flip_and_turn(image, label, rng, spec.quirk("kept-canvas"))
    return seen(image, label, spec, phase, rng)


def seen(image: Tensor, label: Tensor, spec: Spec, phase: str, rng: Generator) -> View:
    """The training view of one image, without augmentation.

    Returns:
        `size` (2,) the image's (H, W); `global` (3, *global_size) uint8 and `global_label` (at 1/4)
        of the whole image; and in all phases but `global`: `patches` (P, 3, h, w) uint8, `boxes`
        (P, 4), and for the patches in the loss `chosen` (Q,) and `labels` (Q, h/4, w/4).

    Raises:
        UserError: with `official`, where the official code crashes.
    """
    if spec.quirk("no-unlabelled") and bool((label == UNLABELLED).any()):
        raise UserError(
            "The official loss crashes on unlabelled pixels, which these labels have: take "
            "`no-unlabelled` out of the spec's `official`."
        )
    whole = spec.global_size
    view = {
        "size": torch.tensor(image.shape[-2:]),
        "global": shrink_image(image, whole),
        "global_label": shrink_label(label, quarter(whole, spec)),
    }
    if phase == "global":
        return view
    boxes = _training_boxes(label, spec)
    chosen = _chosen(boxes, label, spec, rng)
    # Only the last phase needs the other patches: their maps are merged and shared.
    if phase != "local-to-global":
        boxes = [boxes[i] for i in chosen.tolist()]
        chosen = torch.arange(len(boxes))
    labels = cut(label, [boxes[i] for i in chosen.tolist()])
    return view | {
        "patches": cut(image, boxes),
        "boxes": torch.tensor(boxes),
        "chosen": chosen,
        "labels": shrink_label(labels, quarter((boxes[0].height, boxes[0].width), spec)),
    }


def _chosen(boxes: list[Box], label: Tensor, spec: Spec, rng: Generator) -> Tensor:
    """Indices of the patches in the loss."""
    count = spec.patches_per_image
    if count is None:
        return torch.arange(len(boxes))
    found: set[int] = set()
    for _ in range(count if spec.sample_classes else 0):
        if (pixel := pixel_by_class(label, rng)) is None:
            break
        around = [number for number, box in enumerate(boxes) if box.shows(*pixel)]
        if around:
            found.add(around[draw(len(around), rng)])
    return (
        torch.tensor(sorted(found)) if found else torch.randperm(len(boxes), generator=rng)[:count]
    )


def _training_boxes(label: Tensor, spec: Spec) -> list[Box]:
    """The patches of an image; of its foreground's box alone where the spec says so."""
    height, width = label.shape
    boxes = boxes_of(height, width, spec)
    found = bounding_box(label == spec.foreground) if spec.learn_in_box else None
    if found is None:
        return boxes
    return boxes_within(relaxed(found, (height, width), spec.margin, spec.patch_size), spec)


def quarter(size_px: tuple[int, int], spec: Spec) -> tuple[int, int]:
    """The (height, width) of the logits of an input: two halvings that round up."""
    if spec.quirk("quarter-sides") and (size_px[0] % 4 or size_px[1] % 4):
        raise UserError(
            f"The official code crashes in training on inputs of {size_px[0]} x {size_px[1]} px, "
            "which 4 does not divide: take `quarter-sides` out of the spec's `official`."
        )
    return -(-size_px[0] // 4), -(-size_px[1] // 4)


def backward(network: GLNet, views: list[View], spec: Spec, phase: str, back: Back) -> float:
    """Accumulate the gradients of one optimiser step; returns the loss."""
    if spec.quirk("equal-images") and len({tuple(view["size"].tolist()) for view in views}) > 1:
        raise UserError(
            "The official code crashes on a batch of images of different size: take "
            "`equal-images` out of the spec's `official`, or learn with batch 1."
        )
    summed, last = spec.quirk("summed-gradients"), spec.quirk("last-loss")
    step = PatchLosses(len(views), back, summed, last)
    if phase == "global":
        _global(network, views, spec, step)
    elif phase == "local-to-global":
        _local_to_global(network, views, spec, step)
    else:
        learn = _local_alone if phase == "local" else _global_to_local
        for view in views:
            learn(network, view, spec, step)
    return step.loss


def _global(network: GLNet, views: list[View], spec: Spec, step: PatchLosses) -> None:
    images = network.normalise(torch.stack([view["global"] for view in views]))
    label = torch.stack([view["global_label"] for view in views])
    logits = network.global_branch(images).logits
    step.add_whole(_loss(logits, label, spec, whole_batch=True))


def _local_alone(network: GLNet, view: View, spec: Spec, step: PatchLosses) -> None:
    for group in _groups(view, spec):
        logits = network.local_alone(network.normalise(view["patches"][group])).logits
        loss = _loss(logits, view["labels"][group], spec)
        step.add(loss, len(group) / len(view["labels"]))


def _global_to_local(network: GLNet, view: View, spec: Spec, step: PatchLosses) -> None:
    boxes, size = _boxes(view), _size(view)
    with torch.no_grad():
        whole = network.global_branch(network.normalise(view["global"][None]))
    for group in _groups(view, spec):
        places = [boxes[i] for i in group]
        patches = network.normalise(view["patches"][group])
        around = shared_crops(whole.maps, places, size, spec)
        local = network.local_branch(patches, around, compute=pyramid)
        shared = crop(whole.fused, places, size, spec.quirk("loose-crops"))
        logits = network.aggregation(local.fused, shared, aggregate)
        label = view["labels"][group]
        loss = _loss(local.logits, label, spec)
        loss = loss + _loss(logits, label, spec)
        if spec.regularisation:
            target = resize(shared, (local.fused.shape[-2], local.fused.shape[-1]))
            loss = loss + spec.regularisation * F.mse_loss(local.fused, target)
        step.add(loss, len(group) / len(view["labels"]))


def _local_to_global(network: GLNet, views: list[View], spec: Spec, step: PatchLosses) -> None:
    small = network.normalise(torch.stack([view["global"] for view in views]))
    with torch.no_grad():
        kept, merged = zip(
            *(
                _merged(network, view, one[None], spec)
                for view, one in zip(views, small, strict=True)
            ),
            strict=True,
        )
        merged_maps = [
            [torch.cat(level) for level in zip(*kind, strict=True)]
            for kind in zip(*merged, strict=True)
        ]
    whole = network.global_borrowing(small, merged_maps, compute=pyramid)
    # The groups' gradients accumulate at a copy of the fused map, so that the branch needs one
    # backward pass; the official code runs one a group, with the same sum.
    fused = whole.fused.detach().requires_grad_()
    aggregation = ComposedAggregation(network.local_branch.fpn, network.aggregation_borrowing)
    label = torch.stack([view["global_label"] for view in views])
    own = _loss(whole.logits, label, spec, whole_batch=True)
    for number, view in enumerate(views):
        boxes, size, chosen = _boxes(view), _size(view), view["chosen"].tolist()
        for group in _groups(view, spec):
            places = [boxes[chosen[i]] for i in group]
            last, given = (
                [torch.stack(level) for level in zip(*kind, strict=True)]
                for kind in zip(*(kept[number][chosen[i]] for i in group), strict=True)
            )
            around = crop(fused[number : number + 1], places, size, spec.quirk("loose-crops"))
            logits = aggregation.scores(last, given, around)
            loss = _loss(logits, view["labels"][group], spec)
            step.add(loss, len(group) / len(view["labels"]))
    aggregation.backward()
    gathered = fused.grad
    whole.fused.register_hook(lambda gradient: gradient + gathered)
    # This loss is a mean over images, also where those of the groups are summed over processes.
    step.add_whole(own, 1 / process_count() if spec.quirk("summed-gradients") else 1)


def _merged(
    network: GLNet, view: View, small: Tensor, spec: Spec
) -> tuple[dict[int, Kept], list[list[Tensor]]]:
    """The last maps of the patches in the loss, and the merged maps of all patches."""
    boxes, size, chosen = _boxes(view), _size(view), set(view["chosen"].tolist())
    global_maps = network.global_branch(small, compute=levels).maps
    merger = merger_of(global_maps, boxes, size, spec)
    kept: dict[int, Kept] = {}
    for group in groups(range(len(boxes)), spec.sub_batch):
        places = [boxes[i] for i in group]
        patches = network.normalise(view["patches"][list(group)])
        around = shared_crops(global_maps, places, size, spec)
        local = network.local_branch(patches, around, compute=levels)
        merger.add(local.maps[: spec.shared_kinds], places, spec.quirk("loose-crops"))
        last, given = local.maps.smooth2, [map for kind in around[3:] for map in kind]
        for n, i in enumerate(group):
            if i in chosen:
                kept[i] = [map[n] for map in last], [map[n] for map in given]
    return kept, merger.mean()


def _loss(logits: Tensor, label: Tensor, spec: Spec, whole_batch: bool = False) -> Tensor:
    return focal_loss(logits, label, spec.focal_gamma, whole_batch, spec.class_weights)


def _groups(view: View, spec: Spec) -> list[list[int]]:
    return [list(group) for group in groups(range(len(view["labels"])), spec.sub_batch)]


def _boxes(view: View) -> list[Box]:
    return [Box(*numbers) for numbers in view["boxes"].tolist()]


def _size(view: View) -> tuple[int, int]:
    height, width = view["size"].tolist()
    return height, width
