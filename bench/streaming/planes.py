"""Image-sized arrays in files, read and written by windows.

The files are not memory-mapped, since mapped pages count as memory of the process."""

import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Bytes = NDArray[np.uint8]


class ArrayFile:
    """A file with arrays at byte offsets."""

    def __init__(self, path: Path) -> None:
        path.touch()
        self.path, self._file = path, path.open("r+b")

    def read(self, array: NDArray[np.generic], offset: int) -> None:
        """Fill a contiguous array.

        Raises:
            EOFError: the file is shorter.
        """
        self._file.seek(offset)
        if self._file.readinto(array.data.cast("B")) < array.nbytes:
            raise EOFError(f"{self.path} ends before byte {offset + array.nbytes}")

    def write(self, array: NDArray[np.generic], offset: int) -> None:
        """Write a contiguous array."""
        self._file.seek(offset)
        self._file.write(array.data.cast("B"))

    def sync(self) -> None:
        """Flush all written data to disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class CarryFile(ArrayFile):
    """Sums that a row of patches leaves to the next one (`bench.windows.score_sums.Carry`), by
    columns, so that a window is contiguous."""

    def store(self, sums: Tensor, left: int) -> None:
        """Write sums (K, h, w)."""
        columns: NDArray[np.generic] = sums.permute(2, 0, 1).contiguous().numpy()
        self.write(columns, columns[0].nbytes * left)

    def load(self, sums: Tensor, left: int) -> None:
        """Overwrite sums (K, h, w); nothing is carried into the first row of a band."""
        if not self._file.seek(0, os.SEEK_END):
            return
        classes, height, width = sums.shape
        found = torch.empty((width, classes, height), dtype=sums.dtype)
        self.read(found.numpy(), found[0].nbytes * left)
        sums.copy_(found.permute(1, 2, 0))


class Plane:
    """A file of pixels of `depth` bytes each, in row-major order."""

    def __init__(self, path: Path, height_px: int, width_px: int, depth: int = 1) -> None:
        self.height, self.width, self.depth = height_px, width_px, depth
        self.file = ArrayFile(path)

    def read(self, top: int, left: int, height: int, width: int) -> Bytes:
        """A window inside the plane: (height, width, depth)."""
        window = np.empty((height, width, self.depth), np.uint8)
        if width == self.width:
            self.file.read(window, self._offset(top, 0))
        else:
            for row in range(height):
                self.file.read(window[row], self._offset(top + row, left))
        return window

    def write(self, top: int, left: int, window: Bytes) -> None:
        """Write a window (h, w, depth) or, with a depth of 1, (h, w)."""
        if window.shape[1] == self.width:
            self.file.write(np.ascontiguousarray(window), self._offset(top, 0))
        else:
            for row in range(len(window)):
                self.file.write(np.ascontiguousarray(window[row]), self._offset(top + row, left))

    def close(self) -> None:
        """Close its file."""
        self.file.close()

    def _offset(self, row: int, column: int) -> int:
        return (row * self.width + column) * self.depth
