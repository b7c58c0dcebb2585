"""Sums of patches' scores, converted to labels as soon as no later patch adds to them.

Patches come row by row, and in a row from left to right. After each patch, all sums to the left of the
next patch are final for this row of patches. Those above the next row become labels; the others, to
which the next row adds, are stored on disk. Memory therefore holds the scores of one patch only. Each
pixel's scores are added in the order of `bench.tiling.scores_by_patches`, so that the sums are bitwise
equal."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.streaming.planes import ArrayFile
from bench.tiling import Box, labels_of

Write = Callable[[int, int, Tensor], None]
"""(top, left, labels (h, w) uint8): final labels of a window."""


class ScoreSums:
    """The sums under the current patch. Every patch of a grid is added once."""

    def __init__(self, boxes: Sequence[Box], folder: Path, write: Write, row: int = 0) -> None:
        """
        Args:
            boxes: patches of one size, row by row, as from `bench.tiling.grid`.
            row: the row of patches to start with; an earlier process finished those before it.
        """
        self.tops = sorted({box.top for box in boxes})
        self.lefts = sorted({box.left for box in boxes})
        self.height, self.width = boxes[0].height, boxes[0].width
        ordered = [Box(top, left, *boxes[0][2:]) for top in self.tops for left in self.lefts]
        assert list(boxes) == ordered, "patches of a large image come row by row"
        self.final_rows = [*map(int, np.diff(self.tops)), self.height]
        """For each row of patches, how many rows of pixels no later one adds to."""
        self.final_columns = [*map(int, np.diff(self.lefts)), self.width]
        """The same for columns."""
        self.write, self.row, self.column = write, row, 0
        # A row reads the sums stored by the previous row, and writes to the other file. A process
        # that was killed within a row can thus be resumed at its start.
        self.carries = [ArrayFile(folder / f"carry-{number}") for number in range(2)]
        self.sums = torch.empty(0)

    def add(self, scores: Tensor) -> bool:
        """Add the next patch's scores (K, h, w); returns whether it is the last of its row."""
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

    def close(self) -> None:
        """Close the files."""
        for file in self.carries:
            file.close()

    def _load_carry(self, known: int) -> None:
        """Read the sums stored by the previous row into the columns from `known` on."""
        height = self.height - self.final_rows[self.row - 1] if self.row else 0
        width = self.width - known
        if height and width:
            shape = (width, len(self.sums), height)
            found = torch.empty(shape, dtype=self.sums.dtype)
            left = self.lefts[self.column] + known
            self.carries[self.row % 2].read(found.numpy(), found[0].nbytes * left)
            self.sums[:, :height, known:] = found.permute(1, 2, 0)

    def _store_carry(self, sums: Tensor, left: int) -> None:
        """Store sums (K, h, w) for the next row; by columns, so that a window is contiguous."""
        if sums.numel():
            columns: np.ndarray = sums.permute(2, 0, 1).contiguous().numpy()
            self.carries[(self.row + 1) % 2].write(columns, columns[0].nbytes * left)
