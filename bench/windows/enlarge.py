"""Enlarges scores window by window, so that scores of the image's size are never held."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.tiling import Box, Size, cover, labels_of

Axis = Sequence[Tensor]
"""Source positions along one axis, as in `F.interpolate`: for nearest the source pixel of each output
pixel, for bilinear both neighbours and the weight of the second."""


def enlarged_labels(
    scores: Tensor, size: Size, mode: str, chunk_bytes: int
) -> Iterator[tuple[Box, Tensor]]:
    """The labels of small scores (K, h, w), enlarged to `size`, window by window: `nearest` enlarges
    labels, `bilinear` enlarges scores.

    Args:
        chunk_bytes: about the memory that a window takes.
    """
    nearest = mode == "nearest"
    labels = labels_of(scores) if nearest else torch.empty(0)
    positions = _nearest if nearest else _bilinear
    rows, columns = (
        [part.to(scores.device) for part in positions(*pair)]
        for pair in zip(scores.shape[-2:], size, strict=True)
    )
    step = max(1, int((chunk_bytes / 8 / len(scores)) ** 0.5))
    for box in cover(size, (step, step)):
        down = [part[box.top : box.top + box.height] for part in rows]
        across = [part[box.left : box.left + box.width] for part in columns]
        if nearest:
            yield box, labels[down[0][:, None], across[0]]
        else:
            yield box, labels_of(_blend(scores, down, across))


def _nearest(small: int, large: int) -> Axis:
    numbers = torch.arange(small, dtype=torch.float32)[None, None]
    return (F.interpolate(numbers, large, mode="nearest")[0, 0].long(),)


def _bilinear(small: int, large: int) -> Axis:
    step = torch.tensor(small, dtype=torch.float32) / large
    place = ((torch.arange(large, dtype=torch.float32) + 0.5) * step - 0.5).clamp(min=0)
    first = place.long().clamp(max=small - 1)
    return first, (first + 1).clamp(max=small - 1), (place - first).clamp(0, 1)


def _blend(scores: Tensor, down: Axis, across: Axis) -> Tensor:
    """Bilinear interpolation, first along rows, then along columns; equal to torch's up to rounding."""

    def blended(row: Tensor) -> Tensor:
        first, second, share = across
        line = scores[:, row]
        return line[..., first] * (1 - share) + line[..., second] * share

    first, second, share = down
    return blended(first) * (1 - share[:, None]) + blended(second) * share[:, None]
