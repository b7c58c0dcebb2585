"""Arrays of an image's size in files, read and written by windows.

Not mapped into memory: touched pages of a map count as the process's own. What is read and written
here leaves nothing behind but the system's page cache, which it gives back when asked."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
AT_ONCE_BYTES = 2**22
"""Of a read, which passes through a copy."""


class Store:
    """A file that arrays are put into by their place in bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)

    def read(self, array: NDArray[np.generic], offset: int) -> None:
        """Fill a contiguous array.

        Raises:
            EOFError: the file ends before.
        """
        view = array.data.cast("B")
        while view:
            found = os.pread(self._file, min(len(view), AT_ONCE_BYTES), offset)
            if not found:
                raise EOFError(f"{self.path} ends before byte {offset + len(view)}")
            view[: len(found)] = found
            view, offset = view[len(found) :], offset + len(found)

    def write(self, array: NDArray[np.generic], offset: int) -> None:
        """Write a contiguous array."""
        view = array.data.cast("B")
        while view:
            count = os.pwrite(self._file, view, offset)
            view, offset = view[count:], offset + count

    def settle(self) -> None:
        """Return when all that was written is on the disk."""
        os.fsync(self._file)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)


class Plane:
    """Rows of pixels of `depth` bytes each."""

    def __init__(self, path: Path, height_px: int, width_px: int, depth: int = 1) -> None:
        self.height, self.width, self.depth = height_px, width_px, depth
        self.store = Store(path)

    def read(self, top: int, left: int, height: int, width: int) -> Bytes:
        """A window inside the plane: (height, width, depth)."""
        window = np.empty((height, width, self.depth), np.uint8)
        if width == self.width:
            self.store.read(window, self._place(top, 0))
        else:
            for row in range(height):
                self.store.read(window[row], self._place(top + row, left))
        return window

    def write(self, top: int, left: int, window: Bytes) -> None:
        """Put a window (h, w, depth) or, one byte deep, (h, w) there."""
        if window.shape[1] == self.width:
            self.store.write(np.ascontiguousarray(window), self._place(top, 0))
        else:
            for row in range(len(window)):
                self.store.write(np.ascontiguousarray(window[row]), self._place(top + row, left))

    def _place(self, row: int, column: int) -> int:
        return (row * self.width + column) * self.depth
