"""MagNet's phases: the backbone is trained on crops at every scale, then the refinement on the frozen
backbone's probabilities of a patch and of the whole image."""

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from baselines.magnet.inference import resize_image
from baselines.magnet.model import MagNet
from baselines.magnet.patches import align
from baselines.magnet.spec import Spec
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
)
from bench.tiling import Box, Size, shrink_label


def phases(network: MagNet, spec: Spec) -> list[Phase]:
    """`backbone` and `refinement`, or `refinement-1`, `refinement-2`, .. where each later scale has
    a module of its own."""
    backbone = Phase("backbone", (network.backbone,), whole_batch=True, judged_by="coarse")
    return [
        backbone,
        *(
            Phase(name, (module,), whole_batch=True, judged_by="progressive")
            for name, module in zip(_refinements(spec), network.refine, strict=True)
        ),
    ]


def _refinements(spec: Spec) -> list[str]:
    if spec.refinements == 1:
        return ["refinement"]
    return [f"refinement-{number + 1}" for number in range(spec.refinements)]


def view(image: Tensor, label: Tensor, spec: Spec, phase: str, rng: Generator) -> View:
    """The training view of an image (3, H, W) uint8 and its label (H, W).

    Returns:
        Of `backbone` an `image` (3, *input_size) and its `label`; of a refinement `coarse`, the
        whole image, and `fine`, a patch, both (3, *input_size), the patch's `label`, and `boxes`
        (4,): top, left, height and width of the patch on the coarse image, in its pixels.
    """
    if spec.turn:
        image, label = flip_and_turn(image, label, rng)
    if phase == "backbone":
        box = _crop((label.shape[-2], label.shape[-1]), spec, rng)
        image = resize_image(box.of(image), spec.input_size)
        label = shrink_label(box.of(label), spec.input_size)
        if not spec.turn and draw(2, rng):
            image, label = image.flip(-1), label.flip(-1)
        return {"image": image.contiguous(), "label": label.contiguous()}
    later = spec.scale_sizes(label.shape[-2], label.shape[-1])[1:]
    place = _refinements(spec).index(phase) if spec.refinements > 1 else draw(len(later), rng)
    size = later[place]
    box = _place(size, spec.patch_size, rng)
    share = [own / side for own, side in zip(spec.input_size * 2, size * 2, strict=True)]
    return {
        "coarse": resize_image(image, spec.input_size),
        "fine": resize_image(box.of(resize_image(image, size)), spec.input_size),
        "label": shrink_label(box.of(shrink_label(label, size)), spec.input_size),
        "boxes": torch.tensor([a * b for a, b in zip(box, share, strict=True)], dtype=torch.double),
    }


def backward(network: MagNet, views: list[View], spec: Spec, phase: str, back: Back) -> float:
    """Accumulate the gradients of one optimiser step; returns the loss."""
    labels = torch.stack([view["label"] for view in views])
    if phase == "backbone":
        images = torch.stack([view["image"] for view in views])
        scores = network.backbone(network.normalise(images))
        loss = focal_loss(scores, labels, spec.focal_gamma, whole_batch=True)
    else:
        module = network.refine[_refinements(spec).index(phase)]
        logits = module(*given(network, views, spec))
        loss = hard_example_loss(logits, labels, spec.hard_pixels, spec.hard_share)
    return propagate(loss, back)


def given(network: MagNet, views: list[View], spec: Spec) -> tuple[Tensor, Tensor]:
    """The refinement's two inputs in training, maps of probabilities (N, K, *input_size), in order:
    of the patches, and crops of the whole images' first maps.

    As released (`swapped-training`) they are swapped in comparison with the test.
    """
    with torch.no_grad():
        fine = torch.stack([view["fine"] for view in views])
        fine = network.backbone(network.normalise(fine)).softmax(1)
        whole = torch.stack([view["coarse"] for view in views])
        whole = network.backbone(network.normalise(whole)).softmax(1)
        crops = []
        for map, view in zip(whole, views, strict=True):
            top, left, height, width = view["boxes"].tolist()
            start = torch.tensor([top, left], dtype=torch.double, device=map.device)
            displaced = spec.quirk("displaced-crops")
            crops.append(align(map, start, (height, width), spec.input_size, displaced))
        before = torch.stack(crops)
    coarse_first = spec.coarse_first != spec.quirk("swapped-training")
    return (before, fine) if coarse_first else (fine, before)


def hard_example_loss(logits: Tensor, labels: Tensor, least: int, share: float) -> Tensor:
    """Mean of -log q over the pixels whose q, the probability of the true class, is below a
    threshold: `share`, or the q of the pixel that has `least` pixels below it, where that is more.

    Args:
        logits: (N, K, H, W) of all images of a step, or of this process's share of them, which then
            finds a threshold of its own.
        labels: (N, H, W) uint8; 255 has none.

    Returns:
        A scalar; 0 where no pixel is hard.
    """
    known = labels != UNLABELLED
    target = torch.where(known, labels, 0).long()
    log_q = F.log_softmax(logits, 1).gather(1, target[:, None])[:, 0]  # (N, H, W)
    with torch.no_grad():
        q = torch.where(known, log_q.exp(), 2).flatten()  # unlabelled ones come last
        place = (known.sum() - 1).clamp(0, least)
        threshold = q.sort().values.gather(0, place[None]).clamp(min=share)
        hard = known & (q < threshold).view_as(known)
        count = mean_over_processes(hard.sum())
    return -(log_q * hard).sum() / (count + (count == 0))


def _crop(size: Size, spec: Spec, rng: Generator) -> Box:
    """The backbone's training crop of an image of size (H, W): all of it, or the extent of a patch
    at one of the later scales; as released (`corner-crop`) that of the last scale is always at the
    top left."""
    scales = spec.scale_sizes(*size)
    place = draw(len(scales), rng)
    if place == 0:
        return Box(0, 0, *size)
    height, width = (
        min(max(round(patch * side / scaled), 1), side)
        for patch, side, scaled in zip(spec.patch_size, size, scales[place], strict=True)
    )
    if place == len(scales) - 1 and spec.quirk("corner-crop"):
        return Box(0, 0, height, width)
    return _place(size, (height, width), rng)


def _place(size: Size, patch: Size, rng: Generator) -> Box:
    """A patch somewhere in an image of size (H, W); as large as the image, where it is smaller."""
    height, width = min(patch[0], size[0]), min(patch[1], size[1])
    return Box(draw(size[0] - height + 1, rng), draw(size[1] - width + 1, rng), height, width)
