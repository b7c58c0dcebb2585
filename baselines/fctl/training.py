"""The four phases of FCtL: plain patches, with a medium context, with a large one, with both."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Generator, Tensor

from baselines.fctl.inference import boxes_of, context_logits, contexts, logits, windows
from baselines.fctl.model import FCN, FCtL
from baselines.fctl.spec import Spec
from bench.optim import Back, PatchLosses, Phase, View, flip_and_turn, focal_loss, propagate
from bench.tiling import cut, groups, shrink_image, shrink_label


def phases(network: FCtL, spec: Spec) -> list[Phase]:
    """The phases of the spec; later ones start from the weights of earlier ones."""
    gradients: Literal["mean", "sum"] = "sum" if spec.quirk("summed-gradients") else "mean"

    def begin_context(name: str) -> Callable[[], None]:
        def begin() -> None:
            plain = getattr(network, "plain", None)
            if isinstance(plain, FCN):
                network.get_submodule(f"{name}_vgg").load_state_dict(plain.vgg.state_dict())
                rest = network.get_submodule(f"{name}_rest.decoder")
                rest.load_state_dict(plain.decoder.state_dict())

        return begin

    def begin_all() -> None:
        local = network.local
        plain = getattr(network, "plain", None)
        if spec.variant == "inria":
            local.vgg.load_state_dict(network.medium_vgg.state_dict())
            local.decoder.load_state_dict(network.medium_rest.decoder.state_dict())
            trained = network.medium_rest.correlate
            assert trained is not None
            local.blend.correlate["medium"].load_state_dict(trained.state_dict())
        elif isinstance(plain, FCN):  # in this variant all three correlations are new
            local.vgg.load_state_dict(plain.vgg.state_dict())
            local.decoder.load_state_dict(plain.decoder.state_dict())

    def phase(name: str) -> Phase:
        if name == "plain":
            return Phase(name, (network.plain,), gradients=gradients, judged_by=name)
        if name == "medium":
            moving = (network.medium_vgg, network.medium_rest)
            return Phase(name, moving, begin_context(name), False, gradients, name)
        if name == "large":
            whole = spec.variant == "deepglobe"
            moving = (network.large_vgg, network.large_rest)
            if whole:  # from ImageNet's weights, as far as is known
                return Phase(name, moving, whole_batch=True, judged_by=name)
            return Phase(name, moving, begin_context(name), False, gradients, name)
        return Phase(name, (network.local,), begin_all, False, gradients, "contexts")

    return [phase(name) for name in spec.phases]


def view(image: Tensor, label: Tensor, spec: Spec, phase: str, rng: Generator) -> View:
    """The training view of one image, mirrored and turned at random; see `seen`."""
    image, label = flip_and_turn(image, label, rng, spec.quirk("kept-canvas"))
    return seen(image, label, spec, phase, rng)


def seen(image: Tensor, label: Tensor, spec: Spec, phase: str, rng: Generator) -> View:
    """The training view of one image, without augmentation.

    Returns:
        `patches` (P, 3, h, w) uint8 and `labels` (P, h, w); with contexts `medium` and `large`
        (P, 3, h, w), or, in the `deepglobe` variant, `whole` (3, *whole_size) in place of `large`.
        Its phase `large` has only `whole` and `labels` (1, *whole_size).
    """
    strategy = "contexts" if phase == "all" else phase
    whole = {}
    if strategy in ("large", "contexts") and spec.variant == "deepglobe":
        whole["whole"] = shrink_image(image, spec.whole_size)
        if phase == "large":
            return whole | {"labels": shrink_label(label, spec.whole_size)[None]}
    boxes = boxes_of(label.shape[-2], label.shape[-1], spec)
    if spec.patches_per_image is not None:
        chosen = torch.randperm(len(boxes), generator=rng)[: spec.patches_per_image]
        boxes = [boxes[i] for i in chosen.tolist()]
    around = {
        name: contexts(image, boxes, factor) for name, factor in windows(strategy, spec).items()
    }
    return {"patches": cut(image, boxes), "labels": cut(label, boxes)} | whole | around


def backward(network: FCtL, views: list[View], spec: Spec, phase: str, back: Back) -> float:
    """Accumulate the gradients of one optimiser step; returns the loss."""
    if phase == "large" and spec.variant == "deepglobe":
        images = network.normalise(torch.stack([view["whole"] for view in views]))
        labels = torch.cat([view["labels"] for view in views])
        scores = context_logits(network, "large", images, None)
        loss = focal_loss(scores, labels, spec.focal_gamma, whole_batch=True)
        return propagate(loss, back)
    summed, last = spec.quirk("summed-gradients"), spec.quirk("last-loss")
    step = PatchLosses(len(views), back, summed, last)
    for view in views:
        count = len(view["labels"])
        whole = _whole(network, view)
        for group in groups(range(count), spec.sub_batch):
            given = {name: images[list(group)] for name, images in view.items() if name != "whole"}
            strategy = "contexts" if phase == "all" else phase
            scores = logits(network, strategy, given.__getitem__, whole)
            loss = focal_loss(scores, view["labels"][list(group)], spec.focal_gamma)
            step.add(loss, len(group) / count)
            del scores, loss  # else they stay alive in the next group
    return step.loss


def _whole(network: FCtL, view: View) -> Tensor | None:
    """The map of the shrunk whole image, for all its patches."""
    if "whole" not in view:
        return None
    with torch.no_grad():
        found: Tensor = network.large_vgg(network.normalise(view["whole"][None])).pool5
    return found
