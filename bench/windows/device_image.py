"""An image on a GPU, as strategies receive it: an implementation of `bench.tiling.Large`.

The image is copied once and cut there. Labels become final there, window by window, and are copied
once. The device never holds scores of the image's size, and the host no scores at all."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from bench.tiling import Box, MapStore, Merger, Size, cut, groups, shrink_image
from bench.windows.enlarge import enlarged_labels
from bench.windows.score_sums import ScoreSums

CHUNK_BYTES = 2**24
"""About the device's memory for a window where scores of the whole image are enlarged."""


class DeviceImage:
    """Takes 4 bytes of the device's memory a pixel: the image and its labels."""

    def __init__(self, image: Tensor, device: torch.device) -> None:
        """
        Args:
            image: (3, H, W) uint8 on the host.
        """
        self.host, self.device = image, device
        self.shape = (3, image.shape[-2], image.shape[-1])
        self.pixels = image.to(device)
        self.labels = torch.empty(self.shape[1:], dtype=torch.uint8, device=device)
        """(H, W); every strategy writes each of them."""

    def cut(self, boxes: Sequence[Box]) -> Tensor:
        """The boxes as one batch (P, 3, h, w), on the device."""
        return cut(self.pixels, boxes)

    def shrink(self, size: Size) -> Tensor:
        """As `shrink_image`, on the host: its 8-bit arithmetic has no kernel for a GPU."""
        return shrink_image(self.host, size)

    def sum_up(
        self,
        boxes: Sequence[Box],
        sub_batch: int,
        score: Callable[[Sequence[Box]], Tensor],
        dtype: torch.dtype | None,
    ) -> None:
        """Score the patches group by group; their sums become labels as soon as they are final."""
        carries = (_DeviceCarry(self.shape[2]), _DeviceCarry(self.shape[2]))
        sums = ScoreSums(boxes, carries, self._write)
        for group in groups(boxes, sub_batch):
            sums.add_all(score(group), dtype)

    def enlarge(self, scores: Tensor, mode: str) -> None:
        """Write the labels of small scores (K, h, w)."""
        size = (self.shape[1], self.shape[2])
        for box, labels in enlarged_labels(scores, size, mode, CHUNK_BYTES):
            box.of(self.labels).copy_(labels)

    def map_store(self) -> MapStore:
        """A store on the device."""
        kept: dict[Box, Tensor] = {}
        return kept

    def pending_groups(
        self, groups: Iterable[Sequence[Box]], merger: Merger
    ) -> Iterator[Sequence[Box]]:
        """All groups: nothing remains of a process that was killed."""
        return iter(groups)

    def _write(self, top: int, left: int, labels: Tensor) -> None:
        Box(top, left, labels.shape[0], labels.shape[1]).of(self.labels).copy_(labels)


class _DeviceCarry:
    """A `Carry` beside the scores."""

    def __init__(self, width_px: int) -> None:
        self.width_px, self.sums = width_px, torch.empty(0)

    def store(self, sums: Tensor, left: int) -> None:
        if not left:
            self.sums = sums.new_empty(*sums.shape[:2], self.width_px)
        self.sums[..., left : left + sums.shape[2]] = sums

    def load(self, sums: Tensor, left: int) -> None:
        sums.copy_(self.sums[..., left : left + sums.shape[2]])

    def sync(self) -> None:
        """Memory needs none."""
