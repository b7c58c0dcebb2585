"""Sums of patches' scores that become labels while the image is still being worked on.

Patches come row by row, and in a row from left to right. After one of them, whatever lies left of
the next is sure for this row of patches: what lies above the next row of patches becomes labels,
and what the next row still adds to is carried over on the disk. So memory holds the scores of one
patch, whatever the image's width, and every pixel's scores are added in the order in which
`bench.tiling.scores_by_patches` adds them: the sums are the same to the last bit."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.streaming.planes import Store
from bench.tiling import Box, labels_of

Write = Callable[[int, int, Tensor], None]
"""(top, left, labels (h, w) uint8): they are sure."""


class Grid:
    """Patches of one size, row by row, as `bench.tiling.grid` lays them."""

    def __init__(self, boxes: Sequence[Box]) -> None:
        self.boxes = boxes
        self.tops = sorted({box.top for box in boxes})
        self.lefts = sorted({box.left for box in boxes})
        self.height, self.width = boxes[0].height, boxes[0].width
        whole = [
            Box(top, left, self.height, self.width) for top in self.tops for left in self.lefts
        ]
        assert list(boxes) == whole, "patches of a large image come row by row"

    def sure_rows(self, row: int) -> int:
        """How many rows of pixels only this row of patches, and those above it, add to."""
        return self._sure(self.tops, row, self.height)

    def sure_columns(self, column: int) -> int:
        """The same to the right."""
        return self._sure(self.lefts, column, self.width)

    @staticmethod
    def _sure(starts: Sequence[int], number: int, side: int) -> int:
        last = number + 1 == len(starts)
        return side if last else starts[number + 1] - starts[number]


class Canvas:
    """The sums of the patch that is being added to; works through one grid once."""

    def __init__(self, grid: Grid, folder: Path, write: Write, row: int = 0) -> None:
        """Begins with the row of patches `row`, before which all was done by an earlier process."""
        self.grid, self.write, self.row, self.column = grid, write, row, 0
        # A row reads what the one before carried over, and writes the other file: a process that is
        # killed in the middle of a row leaves what the next needs to begin it again.
        self.carries = [Store(folder / f"carry-{number}") for number in range(2)]
        self.sums = torch.empty(0)

    def add(self, scores: Tensor) -> bool:
        """Add the next patch's scores (K, h, w); says whether that was the last of its row."""
        grid = self.grid
        if self.column == 0:
            self.sums = scores.new_zeros(scores.shape)
            self._take_over(0)
        self.sums.add_(scores)
        rows, columns = grid.sure_rows(self.row), grid.sure_columns(self.column)
        left = grid.lefts[self.column]
        self.write(grid.tops[self.row], left, labels_of(self.sums[:, :rows, :columns]))
        self._carry(self.sums[:, rows:, :columns], left)
        if self.column + 1 == len(grid.lefts):
            self.carries[(self.row + 1) % 2].settle()
            self.row, self.column = self.row + 1, 0
            return True
        self.column += 1
        moved = torch.zeros_like(self.sums)
        moved[:, :, : grid.width - columns] = self.sums[:, :, columns:]
        self.sums = moved
        self._take_over(grid.width - columns)
        return False

    def close(self) -> None:
        """Let go of the files."""
        for one in self.carries:
            one.close()

    def _take_over(self, known: int) -> None:
        """Put what the row before carried over into the columns from `known` on."""
        height = self.grid.height - self.grid.sure_rows(self.row - 1) if self.row else 0
        width = self.grid.width - known
        if height and width:
            shape = (width, len(self.sums), height)
            found = torch.empty(shape, dtype=self.sums.dtype)
            left = self.grid.lefts[self.column] + known
            self.carries[self.row % 2].read(found.numpy(), found[0].nbytes * left)
            self.sums[:, :height, known:] = found.permute(1, 2, 0)

    def _carry(self, sums: Tensor, left: int) -> None:
        """Keep sums (K, h, w) for the next row; by columns, so that a window is one piece."""
        if sums.numel():
            kept: np.ndarray = sums.permute(2, 0, 1).contiguous().numpy()
            self.carries[(self.row + 1) % 2].write(kept, kept[0].nbytes * left)
