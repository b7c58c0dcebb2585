"""What all methods learn with: one loss, one augmentation, so that no rival is worse for its recipe
alone."""

from collections.abc import Callable, Iterable

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from bench.parallel import distributed
from bench.parallel.distributed import mean as mean_over_processes
from bench.parallel.distributed import size as process_count

__all__ = [
    "UNLABELLED",
    "PatchLosses",
    "adam",
    "flip_and_turn",
    "focal_loss",
    "mean_over_processes",
    "poly",
    "process_count",
    "propagate",
    "random_crop",
    "sgd",
    "stepped",
]
UNLABELLED = 255
Back = Callable[[Tensor], None]
"""Runs the backward pass of a loss."""


def adam(modules: Iterable[nn.Module], weight_decay: float) -> torch.optim.Adam | None:
    """What every phase learns with: Adam with L2 weight decay on everything that moves, as in the
    official GLNet code; None where nothing moves. The harness sets the learning rate at each
    step."""
    moving = [p for module in modules for p in module.parameters() if p.requires_grad]
    return torch.optim.Adam(moving, weight_decay=weight_decay) if moving else None


def sgd(modules: Iterable[nn.Module], weight_decay: float) -> torch.optim.SGD | None:
    """Stochastic gradient descent with a momentum of .9 and L2 weight decay on everything that
    moves, where a paper asks for it; None where nothing moves."""
    moving = [p for module in modules for p in module.parameters() if p.requires_grad]
    if not moving:
        return None
    return torch.optim.SGD(moving, lr=0, momentum=0.9, weight_decay=weight_decay)


def poly(first: float, least: float, step: int, steps: int, power: float) -> float:
    """The learning rate of a step: from `first` down to `least`, which it would have at
    `steps`."""
    left: float = max(1 - step / steps, 0.0) ** power
    return (first - least) * left + least


def stepped(first: float, step: int, drops: Iterable[int]) -> float:
    """The learning rate of a step that is divided by 10 at each of some steps."""
    return first / 10.0 ** sum(step >= drop for drop in drops)


def focal_loss(logits: Tensor, label: Tensor, gamma: float, whole_batch: bool = False) -> Tensor:
    """Mean over labelled pixels of -(1 - q) ** gamma * log q, q the probability of the true class.

    GLNet section 3.4 (focal loss of Lin et al. 2017); gamma 0 is cross-entropy. q is clamped to
    [1e-7, 1 - 1e-7] as in the official code. Differs from the official code: pixels labelled 255
    are left out (there they crash).

    Args:
        logits: (N, K, H, W).
        label: (N, H, W) uint8.
        whole_batch: these are all images of a step, or this process's share of them: the mean is
            then over the pixels of all processes, some of which may have more unlabelled ones.

    Returns:
        A scalar; 0 where no pixel is labelled. With `whole_batch` the processes' mean of it is the
        loss.
    """
    known = label != UNLABELLED
    target = torch.where(known, label, 0).long()
    log_q = F.log_softmax(logits, 1).gather(1, target[:, None])[:, 0]  # (N, H, W)
    log_q = log_q.clamp(-16.118095651, -1e-7)  # log 1e-7, log(1 - 1e-7)
    loss = -((1 - log_q.exp()) ** gamma) * log_q
    count = distributed.mean(known.sum()) if whole_batch else known.sum()
    return (loss * known).sum() / (count + (count == 0))


def propagate(loss: Tensor, back: Back) -> float:
    """Run the backward pass of a step's only loss; returns its value."""
    back(loss)
    return float(loss.detach())


class PatchLosses:
    """The losses of one optimiser step over groups of patches, each propagated as it comes.

    Every term is a mean over the pixels of all patches of all images, so that neither the sub-batch
    nor the number of patches changes the step. The released codes of GLNet and FCtL sum over groups
    and images instead, and log the last loss alone."""

    def __init__(self, images: int, back: Back, summed: bool, last: bool) -> None:
        """`summed`, `last`: as the released codes do."""
        self.images, self.back, self.summed, self.last = images, back, summed, last
        self.parts: list[tuple[float, float]] = []

    def add(self, loss: Tensor, share: float) -> None:
        """Propagate the mean loss of one group, with its share of its image's patches."""
        weight = 1 if self.summed else share / self.images
        self.back(loss * weight)
        self.parts.append((float(loss.detach()), weight))

    def add_whole(self, loss: Tensor, share: float = 1) -> None:
        """Propagate the mean loss of the whole images, which the official code computes first."""
        self.back(loss * share)
        self.parts.insert(0, (float(loss.detach()), 1))

    @property
    def loss(self) -> float:
        """The loss that is logged."""
        if self.last:
            return self.parts[-1][0]
        return sum(loss * weight for loss, weight in self.parts)


def random_crop(image: Tensor, label: Tensor, side: int, rng: Generator) -> tuple[Tensor, Tensor]:
    """A square of the image; where the image is smaller, black and unlabelled below and to the
    right."""
    height, width = label.shape
    down, across = max(side - height, 0), max(side - width, 0)
    if down or across:  # else nothing is copied: the rest of a large image is never read
        image = F.pad(image, (0, across, 0, down))
        label = F.pad(label, (0, across, 0, down), value=UNLABELLED)
        height, width = label.shape
    top, left = _draw(height - side + 1, rng), _draw(width - side + 1, rng)
    here = (..., slice(top, top + side), slice(left, left + side))
    return image[here].contiguous(), label[here].contiguous()


def flip_and_turn(
    image: Tensor, label: Tensor, rng: Generator, keep_canvas: bool = False
) -> tuple[Tensor, Tensor]:
    """Mirror each axis with probability 1/2 and, with probability 1/2, turn by 90, 180 or 270
    degrees.

    Differs from the official code: a turned image that is not square changes its shape; there it
    keeps the canvas, and the corners become black class 0.

    Args:
        image: (3, H, W); label: (H, W).
        keep_canvas: as the official code does.
    """
    canvas = (image.shape[-2], image.shape[-1])
    for axis in (-1, -2):
        if _draw(2, rng):
            image, label = image.flip(axis), label.flip(axis)
    if _draw(2, rng):
        quarters = 1 + _draw(3, rng)
        image = torch.rot90(image, quarters, (-2, -1))
        label = torch.rot90(label, quarters, (-2, -1))
        if keep_canvas:
            image, label = _on_canvas(image, canvas), _on_canvas(label, canvas)
    return image, label


def _on_canvas(map: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle of a map (..., H, W) on a canvas of another size, 0 where the map does not
    reach."""
    across, down = size[1] - map.shape[-1], size[0] - map.shape[-2]
    # F.pad cuts where it is given a negative width.
    return F.pad(map, (across // 2, across - across // 2, down // 2, down - down // 2))


def _draw(below: int, rng: Generator) -> int:
    return int(torch.randint(below, (), generator=rng))
