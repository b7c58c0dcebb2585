"""Sums of patches' scores, converted to labels as soon as no later patch adds to them.

Patches come row by row, and in a row from left to right. After each patch, all sums to the left of the
next patch are final for this row of patches. Those above the next row become labels; the others, to
which the next row adds, are carried to it. Memory therefore holds the scores of one patch only, and
the carried ones where they are not on disk. Each pixel's scores are added in the order of
`bench.tiling.scores_by_patches`, so that the sums are bitwise equal."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from bench.tiling import Box, dtype_of_sums, labels_of, resize

Write = Callable[[int, int, Tensor], None]
"""(top, left, labels (h, w) uint8): final labels of a window."""


class Carry(Protocol):
    """The sums that one row of patches leaves to the next one, as wide as the image."""

    def store(self, sums: Tensor, left: int) -> None:
        """Store sums (K, h, w) of the columns from `left` on; the first ones of a row have 0."""
        ...

    def load(self, sums: Tensor, left: int) -> None:
        """Overwrite sums (K, h, w) with those stored for the columns from `left` on."""
        ...

    def sync(self) -> None:
        """Called after the last patch of a row."""
        ...


class ScoreSums:
    """The sums under the current patch. Every patch of a grid is added once."""

    def __init__(
        self, boxes: Sequence[Box], carries: tuple[Carry, Carry], write: Write, row: int = 0
    ) -> None:
        """
        Args:
            boxes: patches of one size, row by row, as from `bench.tiling.grid`.
            carries: a row of patches reads one and writes the other, so that a process that was
                killed within a row can be resumed at its start.
            row: the row of patches to start with; an earlier process finished those before it.
        """
        self.tops = sorted({box.top for box in boxes})
        self.lefts = sorted({box.left for box in boxes})
        self.height, self.width = boxes[0].height, boxes[0].width
        ordered = [Box(top, left, *boxes[0][2:]) for top in self.tops for left in self.lefts]
        assert list(boxes) == ordered, "patches of a large image come row by row"
        self.final_rows = [*(b - a for a, b in pairwise(self.tops)), self.height]
        """For each row of patches, how many rows of pixels no later one adds to."""
        self.final_columns = [*(b - a for a, b in pairwise(self.lefts)), self.width]
        """The same for columns."""
        self.carries, self.write, self.row, self.column = carries, write, row, 0
        self.sums = torch.empty(0)

    def add(self, scores: Tensor, dtype: torch.dtype | None = None) -> bool:
        """Add the next patch's scores (K, any, any), resized to it by nearest neighbour; returns
        whether it is the last of its row.

        Args:
            dtype: of the sums, as in `bench.tiling.scores_by_patches`.
        """
        scores = resize(
            scores[None].to(dtype_of_sums(scores, dtype)), (self.height, self.width), "nearest"
        )[0]
        if self.column == 0:
            self.sums = scores.new_zeros(scores.shape)
            self._load_carry(0)
        self.sums.add_(scores)
        rows, columns = self.final_rows[self.row], self.final_columns[self.column]
        left = self.lefts[self.column]
        self.write(self.tops[self.row], left, labels_of(self.sums[:, :rows, :columns]))
        self._store_carry(self.sums[:, rows:, :columns], left)
        if self.column + 1 == len(self.lefts):
            self.carries[(self.row + 1) % 2].sync()
            self.row, self.column = self.row + 1, 0
            return True
        self.column += 1
        shifted = torch.zeros_like(self.sums)
        shifted[:, :, : self.width - columns] = self.sums[:, :, columns:]
        self.sums = shifted
        self._load_carry(self.width - columns)
        return False

    def add_all(self, scores: Tensor, dtype: torch.dtype | None = None) -> None:
        """Add the scores of the next patches (P, K, any, any)."""
        for one in scores:
            self.add(one, dtype)

    def _load_carry(self, known: int) -> None:
        """Read the sums stored by the previous row into the columns from `known` on."""
        height = self.height - self.final_rows[self.row - 1] if self.row else 0
        if height and known < self.width:
            left = self.lefts[self.column] + known
            self.carries[self.row % 2].load(self.sums[:, :height, known:], left)

    def _store_carry(self, sums: Tensor, left: int) -> None:
        if sums.numel():
            self.carries[(self.row + 1) % 2].store(sums, left)
