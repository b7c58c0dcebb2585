"""What a method's training.py consists of: phases, views, losses and augmentation; and optimisers and
learning rates, so that methods do not differ in their training recipe."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from bench.config import limited_to_avx2
from bench.errors import UserError
from bench.parallel import distributed
from bench.parallel.distributed import mean as mean_over_processes
from bench.parallel.distributed import size as process_count

__all__ = [
    "UNLABELLED",
    "Back",
    "PatchLosses",
    "Phase",
    "View",
    "adam",
    "adamw",
    "distorted_crop",
    "draw",
    "flip_and_turn",
    "focal_loss",
    "mean_over_processes",
    "pixel_by_class",
    "poly",
    "process_count",
    "propagate",
    "random_crop",
    "sgd",
    "stepped",
    "to_bytes",
    "uniform",
    "weights_by_class",
]
UNLABELLED = 255
REDRAWS = 10
MOST_OF_A_CROP = 0.75
"""A crop is drawn again, at most REDRAWS times, if one class has more than this share of it."""
Back = Callable[[Tensor], None]
"""Runs the backward pass of a loss."""
View = dict[str, Tensor]
"""What training sees of one image."""


@dataclass(frozen=True)
class Phase:
    """One phase of training, with its own optimiser."""

    name: str
    trains: tuple[nn.Module, ...]
    """In train mode and moving; all else of the network stays frozen in eval mode."""
    begin: Callable[[], None] = lambda: None
    """Runs once before the first step: copy what an earlier phase has learnt."""
    whole_batch: bool = False
    """All images of a step pass `trains` in one forward, so that batch norm sees them together;
    else they pass one after another. Says how several processes are to act as one; a loss over the
    whole batch is told so too (`focal_loss`)."""
    gradients: Literal["mean", "sum"] = "mean"
    """How those of several processes join: as the loss is a mean or a sum over images."""
    judged_by: str = ""
    """The strategy whose mIoU on val says how far the phase has come."""


def adam(modules: Iterable[nn.Module], weight_decay: float) -> torch.optim.Adam | None:
    """Adam with L2 weight decay on all trainable parameters, as in the official GLNet code; None if
    there are none. The harness sets the learning rate at each step."""
    moving = [p for module in modules for p in module.parameters() if p.requires_grad]
    # The fused kernel takes its square roots itself. MKL's differ between processors.
    fused = limited_to_avx2() and all(p.device.type == "cpu" for p in moving)
    return (
        torch.optim.Adam(moving, weight_decay=weight_decay, fused=fused or None) if moving else None
    )


def adamw(modules: Iterable[nn.Module], weight_decay: float) -> torch.optim.AdamW | None:
    """Adam with decoupled weight decay on all trainable parameters, for papers that use it; None if
    there are none."""
    moving = [p for module in modules for p in module.parameters() if p.requires_grad]
    fused = limited_to_avx2() and all(p.device.type == "cpu" for p in moving)  # as for `adam`
    return (
        torch.optim.AdamW(moving, weight_decay=weight_decay, fused=fused or None)
        if moving
        else None
    )


def sgd(modules: Iterable[nn.Module], weight_decay: float) -> torch.optim.SGD | None:
    """Stochastic gradient descent with a momentum of 0.9 and L2 weight decay on all trainable
    parameters, for papers that use it; None if there are none."""
    moving = [p for module in modules for p in module.parameters() if p.requires_grad]
    if not moving:
        return None
    return torch.optim.SGD(moving, lr=0, momentum=0.9, weight_decay=weight_decay)


def poly(first: float, least: float, step: int, steps: int, power: float) -> float:
    """Polynomial learning rate of a step: `first` at step 0, `least` at `steps`."""
    left: float = max(1 - step / steps, 0.0) ** power
    return (first - least) * left + least


def stepped(first: float, step: int, drops: Iterable[int]) -> float:
    """The learning rate of a step, divided by 10 at each of the steps `drops`."""
    return first / 10.0 ** sum(step >= drop for drop in drops)


def focal_loss(
    logits: Tensor,
    label: Tensor,
    gamma: float,
    whole_batch: bool = False,
    class_weights: Sequence[float] = (),
) -> Tensor:
    """Mean over labelled pixels of -(1 - q) ** gamma * log q, q the probability of the true class.

    GLNet section 3.4 (focal loss of Lin et al. 2017); gamma 0 is cross-entropy. q is clamped to
    [1e-7, 1 - 1e-7] as in the official code. Differs from the official code: pixels labelled 255
    are left out; the official code crashes on them.

    Args:
        logits: (N, K, H, W).
        label: (N, H, W) uint8.
        whole_batch: the images are all images of a step, or this process's share of them. The mean
            is then over the labelled pixels of all processes, whose numbers may differ.
        class_weights: factors of a pixel's loss by its true class, K of them; none: 1. The mean is
            still over the number of pixels, so that groups of patches can be added up.

    Raises:
        UserError: there are not as many weights as classes.

    Returns:
        A scalar; 0 if no pixel is labelled. With `whole_batch` its mean over the processes is the
        loss.
    """
    known = label != UNLABELLED
    target = torch.where(known, label, 0).long()
    log_q = F.log_softmax(logits, 1).gather(1, target[:, None])[:, 0]  # (N, H, W)
    log_q = log_q.clamp(-16.118095651, -1e-7)  # log 1e-7, log(1 - 1e-7)
    loss = -((1 - log_q.exp()) ** gamma) * log_q
    if class_weights:
        loss = loss * weights_by_class(class_weights, target, logits)
    count = distributed.mean(known.sum()) if whole_batch else known.sum()
    return (loss * known).sum() / (count + (count == 0))


def weights_by_class(weights: Sequence[float], target: Tensor, logits: Tensor) -> Tensor:
    """The factor of each pixel's loss by its true class.

    Args:
        target: (N, H, W) int64, 0..K-1.
        logits: (N, K, ...), of which number of classes, type and device are used.

    Raises:
        UserError: there are not K weights.
    """
    if len(weights) != logits.shape[1]:
        raise UserError(
            f"`class_weights` has {len(weights)} numbers, but the data set has {logits.shape[1]} classes."
        )
    return logits.new_tensor(weights)[target]


def propagate(loss: Tensor, back: Back) -> float:
    """Run the backward pass of the only loss of a step; returns its value."""
    back(loss)
    return float(loss.detach())


class PatchLosses:
    """The losses of one optimiser step over groups of patches, each propagated immediately.

    The sum of all terms is a mean over the pixels of all patches of all images, so that neither the
    sub-batch nor the number of patches changes the step. The released codes of GLNet and FCtL sum
    over groups and images instead, and log only the last loss."""

    def __init__(self, images: int, back: Back, summed: bool, last: bool) -> None:
        """`summed`: sum losses, `last`: log the last loss, both as the released codes do."""
        self.images, self.back, self.summed, self.last = images, back, summed, last
        self.parts: list[tuple[float, float]] = []

    def add(self, loss: Tensor, share: float) -> None:
        """Propagate the mean loss of one group; `share`: the group's share of the image's patches."""
        weight = 1 if self.summed else share / self.images
        self.back(loss * weight)
        self.parts.append((float(loss.detach()), weight))

    def add_whole(self, loss: Tensor, share: float = 1) -> None:
        """Propagate the mean loss of the whole images, the first loss in the official code."""
        self.back(loss * share)
        self.parts.insert(0, (float(loss.detach()), 1))

    @property
    def loss(self) -> float:
        """The loss to log."""
        if self.last:
            return self.parts[-1][0]
        return sum(loss * weight for loss, weight in self.parts)


def random_crop(
    image: Tensor, label: Tensor, side: int, rng: Generator, by_class: bool = False
) -> tuple[Tensor, Tensor]:
    """A random square of the image and its label; smaller images are padded below and to the right
    with black, unlabelled pixels.

    Args:
        by_class: the square shows a pixel that `pixel_by_class` draws.
    """
    height, width = label.shape
    down, across = max(side - height, 0), max(side - width, 0)
    if down or across:  # else nothing is copied, and the rest of a large image is never read
        image = F.pad(image, (0, across, 0, down))
        label = F.pad(label, (0, across, 0, down), value=UNLABELLED)
        height, width = label.shape
    pixel = pixel_by_class(label, rng) if by_class else None

    def first(length: int, place: int | None) -> int:
        if place is None:
            return draw(length - side + 1, rng)
        return min(max(place - draw(side, rng), 0), length - side)

    top, left = map(first, (height, width), pixel or (None, None))
    here = (..., slice(top, top + side), slice(left, left + side))
    return image[here].contiguous(), label[here].contiguous()


def pixel_by_class(label: Tensor, rng: Generator) -> tuple[int, int] | None:
    """(row, column) of a random pixel of a class that is drawn first, so that rare classes are seen
    as often as frequent ones; None if nothing is labelled.

    Args:
        label: (H, W) uint8, 255 = unlabelled.
    """
    counts = torch.bincount(label.flatten(), minlength=UNLABELLED + 1)[:UNLABELLED]
    present = counts.nonzero()[:, 0].tolist()
    if not present:
        return None
    k = present[draw(len(present), rng)]
    inside = label.numpy() == k  # torch takes ten times as long to count them
    rank = draw(int(counts[k]), rng)
    until = np.count_nonzero(inside, axis=1).cumsum()  # in each row and all above
    row = int(np.searchsorted(until, rank, side="right"))
    above = int(until[row - 1]) if row else 0
    return row, int(np.flatnonzero(inside[row])[rank - above])


def flip_and_turn(
    image: Tensor, label: Tensor, rng: Generator, keep_canvas: bool = False
) -> tuple[Tensor, Tensor]:
    """Flip each axis with probability 1/2 and, with probability 1/2, rotate by 90, 180 or 270
    degrees.

    Differs from the official code: a rotated image that is not square changes its shape; there it
    keeps its shape, and pixels outside become black and class 0.

    Args:
        image: (3, H, W); label: (H, W).
        keep_canvas: keep the shape, as the official code does.
    """
    canvas = (image.shape[-2], image.shape[-1])
    for axis in (-1, -2):
        if draw(2, rng):
            image, label = image.flip(axis), label.flip(axis)
    if draw(2, rng):
        quarters = 1 + draw(3, rng)
        image = torch.rot90(image, quarters, (-2, -1))
        label = torch.rot90(label, quarters, (-2, -1))
        if keep_canvas:
            image, label = _on_canvas(image, canvas), _on_canvas(label, canvas)
    return image, label


def _on_canvas(map: Tensor, size: tuple[int, int]) -> Tensor:
    """A map (..., H, W) centred on a canvas of another size, cropped or padded with 0."""
    across, down = size[1] - map.shape[-1], size[0] - map.shape[-2]
    # F.pad crops for negative widths.
    return F.pad(map, (across // 2, across - across // 2, down // 2, down - down // 2))


def draw(below: int, rng: Generator) -> int:
    """A random integer of 0 .. `below` - 1."""
    return int(torch.randint(below, (), generator=rng))


def uniform(rng: Generator, low: float = 0, high: float = 1) -> float:
    """A random number between `low` and `high`."""
    return low + (high - low) * float(torch.rand((), generator=rng))


def distorted_crop(
    image: Tensor,
    label: Tensor,
    side: int,
    rng: Generator,
    *,
    rotate: bool,
    any_angle: bool,
    distort: bool,
    by_class: bool = False,
) -> View:
    """A training view in the order of ISDNet's and RUE's released codes: a crop, flipped, rotated
    and with its colours distorted at random; the first arguments are as in `random_crop`.

    Args:
        any_angle: rotate by 90 to 270 degrees, as released, instead of 90, 180 or 270.
        by_class: as in `random_crop`, instead of a crop that no class fills.
    """
    crop = partial(random_crop, by_class=True) if by_class else _balanced_crop
    image, label = crop(image, label, side, rng)
    if uniform(rng) < 0.5:
        image, label = image.flip(-1), label.flip(-1)
    if rotate and uniform(rng) < 0.5:
        if any_angle:
            image, label = _turned(image, label, uniform(rng, 90, 270))
        else:
            quarters = 1 + draw(3, rng)
            image, label = torch.rot90(image, quarters, (-2, -1)), label.rot90(quarters)
    if distort:
        image = _distorted(image, rng)
    return {"image": image.contiguous(), "label": label.contiguous()}


def _turned(image: Tensor, label: Tensor, degrees: float) -> tuple[Tensor, Tensor]:
    """Both turned about their centre on the same canvas; pixels from outside are black and
    unlabelled."""
    from torchvision.transforms.functional import InterpolationMode, rotate  # takes seconds

    turned = rotate(image, degrees, InterpolationMode.BILINEAR)
    return turned, rotate(label[None], degrees, fill=[float(UNLABELLED)])[0]


def _balanced_crop(
    image: Tensor, label: Tensor, side: int, rng: Generator
) -> tuple[Tensor, Tensor]:
    """A random square of the image, drawn again while one class has most of it."""
    for _ in range(REDRAWS + 1):
        seen, labels = random_crop(image, label, side, rng)
        counts = labels[labels != UNLABELLED].long().bincount()
        if len(counts) and counts.max() < MOST_OF_A_CROP * counts.sum():
            break
    return seen, labels


def _distorted(image: Tensor, rng: Generator) -> Tensor:
    """Brightness, contrast, saturation and hue of (3, H, W) uint8, each with probability 1/2;
    contrast comes first or last."""
    from torchvision.transforms.functional import adjust_hue  # takes seconds to import

    def contrasted(image: Tensor) -> Tensor:
        return to_bytes(image * uniform(rng, 0.5, 1.5)) if uniform(rng) < 0.5 else image

    if uniform(rng) < 0.5:
        image = to_bytes(image + uniform(rng, -32, 32))
    contrast_first = uniform(rng) < 0.5
    if contrast_first:
        image = contrasted(image)
    if uniform(rng) < 0.5:
        image = _saturated(image, uniform(rng, 0.5, 1.5))
    if uniform(rng) < 0.5:
        image = adjust_hue(image, int(torch.randint(-18, 18, (), generator=rng)) / 180)
    return image if contrast_first else contrasted(image)


def _saturated(image: Tensor, factor: float) -> Tensor:
    """Saturation times a factor, at most 1; hue and value stay."""
    x = image.float()
    value = x.amax(0)
    span = (value - x.amin(0)).clamp(min=1e-6)
    return to_bytes(value - (value - x) * (value / span).clamp(max=factor))


def to_bytes(image: Tensor) -> Tensor:
    """Rounded to uint8, 0..255."""
    return image.round().clamp(0, 255).to(torch.uint8)
