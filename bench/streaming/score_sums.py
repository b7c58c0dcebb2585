"""Sums of patches' scores that become labels while later patches are still to come.

Patches come row by row, and in a row from left to right. After a patch, all sums left of the next
one are final for this row of patches: above the next row they become labels, and the rest, to which
the next row still adds, is stored on the disk. So memory holds the scores of one patch, whatever
the image's width. Each pixel's scores are added in the order of `bench.tiling.scores_by_patches`:
the sums are equal bit by bit."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.streaming.planes import ArrayFile
from bench.tiling import Box, labels_of

Write = Callable[[int, int, Tensor], None]
"""(top, left, labels (h, w) uint8): final labels of a window."""


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

        self.final_rows = _steps(self.tops, self.height)
        """For each row of patches, how many rows of pixels no later one adds to."""
        self.final_columns = _steps(self.lefts, self.width)
        """The same to the right."""


def _steps(starts: Sequence[int], side: int) -> list[int]:
    return [after - start for start, after in pairwise(starts)] + [side]


class ScoreSums:
    """The sums under the current patch; handles each patch of one grid once."""

    def __init__(self, grid: Grid, folder: Path, write: Write, row: int = 0) -> None:
        """Starts at the row of patches `row`; an earlier process finished those before it."""
        self.grid, self.write, self.row, self.column = grid, write, row, 0
        # A row reads the sums that the row before stored, and writes to the other file: after a kill
        # within a row, the next process can start the row again.
        self.carries = [ArrayFile(folder / f"carry-{number}") for number in range(2)]
        self.sums = torch.empty(0)

    def add(self, scores: Tensor) -> bool:
        """Add the next patch's scores (K, h, w); returns whether it is the last of its row."""
        grid = self.grid
        if self.column == 0:
            self.sums = scores.new_zeros(scores.shape)
            self._load_carried(0)
        self.sums.add_(scores)
        rows, columns = grid.final_rows[self.row], grid.final_columns[self.column]
        left = grid.lefts[self.column]
        self.write(grid.tops[self.row], left, labels_of(self.sums[:, :rows, :columns]))
        self._store_carried(self.sums[:, rows:, :columns], left)
        if self.column + 1 == len(grid.lefts):
            self.carries[(self.row + 1) % 2].sync()
            self.row, self.column = self.row + 1, 0
            return True
        self.column += 1
        moved = torch.zeros_like(self.sums)
        moved[:, :, : grid.width - columns] = self.sums[:, :, columns:]
        self.sums = moved
        self._load_carried(grid.width - columns)
        return False

    def close(self) -> None:
        """Close the files."""
        for one in self.carries:
            one.close()

    def _load_carried(self, known: int) -> None:
        """Read the row before's stored sums into the columns from `known` on."""
        height = self.grid.height - self.grid.final_rows[self.row - 1] if self.row else 0
        width = self.grid.width - known
        if height and width:
            shape = (width, len(self.sums), height)
            found = torch.empty(shape, dtype=self.sums.dtype)
            left = self.grid.lefts[self.column] + known
            self.carries[self.row % 2].read(found.numpy(), found[0].nbytes * left)
            self.sums[:, :height, known:] = found.permute(1, 2, 0)

    def _store_carried(self, sums: Tensor, left: int) -> None:
        """Store sums (K, h, w) for the next row; by columns, so that a window is contiguous."""
        if sums.numel():
            kept: np.ndarray = sums.permute(2, 0, 1).contiguous().numpy()
            self.carries[(self.row + 1) % 2].write(kept, kept[0].nbytes * left)
