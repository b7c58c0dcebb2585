"""An image on disk, as strategies receive it: an implementation of `bench.tiling.Large`."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.errors import UserError
from bench.run import save
from bench.streaming.partial import State
from bench.streaming.planes import ArrayFile, CarryFile, Plane
from bench.tiling import Box, Merger, Size, dtype_of_sums, groups, shrink_image
from bench.windows.enlarge import enlarged_labels
from bench.windows.score_sums import ScoreSums, Write

CHUNK_BYTES = 2**22
"""Size of the pixels or scores in memory at once, in steps that do not work by patches."""
BLOCK_PX = 16
"""Columns of the shrunk image that are computed at once."""
SAVE_INTERVAL_S = 15.0
"""Seconds between saves of the state of merging."""
MERGED = "merged"
"""File with the state of merging."""
Progress = Callable[..., Any]
"""`bench.cli.progress` of pixels."""


class LargeImage:
    """Reads pixels from one plane and writes labels to another; see `bench.tiling.Large`."""

    device = torch.device("cpu")

    def __init__(self, pixels: Plane, labels: Plane, partial: State, progress: Progress) -> None:
        self.shape = (3, pixels.height, pixels.width)
        self.pixels, self.labels, self.partial, self.progress = pixels, labels, partial, progress
        self._map_store: DiskMapStore | None = None

    def window(self, box: Box) -> Tensor:
        """(3, h, w) uint8."""
        return torch.from_numpy(self.pixels.read(*box)).permute(2, 0, 1)

    def whole(self) -> Tensor:
        """(3, H, W) uint8, all in memory."""
        return self.window(Box(0, 0, *self.shape[1:])).contiguous()

    def cut(self, boxes: Sequence[Box]) -> Tensor:
        """The boxes as one batch (P, 3, h, w)."""
        return torch.stack([self.window(box) for box in boxes]).contiguous()

    def shrink(self, size: Size) -> Tensor:
        """The same values as `shrink_image` of the whole image: torch also shrinks rows first, rounds
        to 8 bits, and then shrinks columns, so that both steps can be done in blocks. Shrunk rows
        are stored on disk in between."""
        cached = self.partial.folder / f"small-{size[0]}x{size[1]}.npy"
        if f"small {size}" in self.partial.done:
            return torch.from_numpy(np.load(cached))
        small = torch.empty(3, *size, dtype=torch.uint8)
        path = self.partial.folder / "rows"
        with contextlib.closing(ArrayFile(path)) as rows:
            self._shrink_rows(rows, size[1])
            for left in range(0, size[1], BLOCK_PX):
                block = np.empty((self.shape[1], 3, min(BLOCK_PX, size[1] - left)), np.uint8)
                rows.read(block, self.shape[1] * 3 * left)
                column = torch.from_numpy(block).permute(1, 0, 2).contiguous()
                small[:, :, left : left + BLOCK_PX] = shrink_image(
                    column, (size[0], len(block[0, 0]))
                )
        path.unlink()
        np.save(cached, small.numpy())
        self.partial.mark_done(f"small {size}", 1)
        return small

    def _shrink_rows(self, rows: ArrayFile, width: int) -> None:
        """Shrink all rows to `width`, stored as blocks of columns (H, 3, w)."""
        height = self.shape[1]
        step = max(1, CHUNK_BYTES // (3 * self.shape[2]))
        bar = self.progress(height * self.shape[2], "shrinking")
        for top in range(0, height, step):
            count = min(step, height - top)
            chunk = self.window(Box(top, 0, count, self.shape[2])).contiguous()
            narrow = shrink_image(chunk, (count, width)).permute(1, 0, 2)  # (rows, 3, w)
            for left in range(0, width, BLOCK_PX):
                block = narrow[:, :, left : left + BLOCK_PX].contiguous().numpy()
                rows.write(block, height * 3 * left + top * block[0].nbytes)
            bar.update(count * self.shape[2])
        bar.close()

    def sum_up(
        self,
        boxes: Sequence[Box],
        sub_batch: int,
        score: Callable[[Sequence[Box]], Tensor],
        dtype: torch.dtype | None,
    ) -> None:
        """Score the patches group by group; write labels when a row of patches is done."""
        folder, done = self.partial.folder, self.partial.done.get("rows", 0)
        with score_sums(boxes, folder, self._write, done) as sums:
            bar = self._bar("labels", len(boxes), done * len(sums.lefts))

            def counted(group: Sequence[Box]) -> Tensor:
                scores = score(group)
                bar.update(self._pixels(len(boxes), len(group)))
                return scores

            for rows in add_patches(sums, boxes, sub_batch, counted, dtype):
                self.labels.file.sync()
                self.partial.mark_done("rows", rows)
        bar.close()

    def enlarge(self, scores: Tensor, mode: str) -> None:
        """Write labels of small scores (K, h, w): `nearest` enlarges labels, `bilinear` enlarges scores."""
        height, width = self.shape[1:]
        bar = self.progress(height * width, "labels")
        for box, labels in enlarged_labels(scores, (height, width), mode, CHUNK_BYTES):
            self._write(box.top, box.left, labels)
            bar.update(labels.numel())
        bar.close()

    def map_store(self) -> "DiskMapStore":
        """A store of feature maps in the folder of the unfinished image."""
        self._map_store = DiskMapStore(self.partial.folder / "maps")
        return self._map_store

    def pending_groups(
        self, groups: Iterable[Sequence[Box]], merger: Merger
    ) -> Iterator[Sequence[Box]]:
        """The groups that are not merged yet. Saves the merger's state every few seconds."""
        todo = list(groups)
        total = sum(map(len, todo))
        path = self.partial.folder / MERGED
        done = _restore(merger, path) if path.exists() else 0
        bar = self._bar("merging", total, sum(map(len, todo[:done])))
        saved = time.monotonic()
        for number, group in enumerate(todo[done:], done + 1):
            yield group
            bar.update(self._pixels(total, len(group)))
            if number == 1 and self._map_store:
                self._map_store.check(total / len(group))
            if time.monotonic() - saved > SAVE_INTERVAL_S or number == len(todo):
                self.save_merged(merger, number)
                saved = time.monotonic()
        bar.close()

    def save_merged(self, merger: Merger, groups: int) -> None:
        """Save the state of merging after so many groups."""
        places = [[tuple(box) for box in level] for level in merger.places]
        state = {"groups": groups, "counts": merger.counts, "sums": merger.sums}
        save(self.partial.folder / MERGED, {**state, "places": places})

    def _write(self, top: int, left: int, labels: Tensor) -> None:
        self.labels.write(top, left, labels.numpy())

    def _bar(self, what: str, patches: int, done: int) -> Any:
        pixels = self.shape[1] * self.shape[2]
        return self.progress(pixels, what, done=pixels * done // patches)

    def _pixels(self, patches: int, done: int) -> float:
        """The share of the image's pixels that corresponds to the patches that are done."""
        return self.shape[1] * self.shape[2] * done / patches


@contextlib.contextmanager
def score_sums(
    boxes: Sequence[Box], folder: Path, write: Write, row: int = 0
) -> Iterator[ScoreSums]:
    """Sums that are carried from row to row by files in a folder. The first row gets those that are
    there."""
    with contextlib.ExitStack() as files:
        before, after = (
            files.enter_context(contextlib.closing(CarryFile(folder / f"carry-{number}")))
            for number in range(2)
        )
        yield ScoreSums(boxes, (before, after), write, row)


def add_patches(
    sums: ScoreSums,
    boxes: Sequence[Box],
    sub_batch: int,
    score: Callable[[Sequence[Box]], Tensor],
    dtype: torch.dtype | None,
    end: int | None = None,
) -> Iterator[int]:
    """Score the patches group by group from the first row of `sums` on, up to row `end`.

    Yields:
        the number of rows that are done, after each.
    """
    first, number = sums.row * len(sums.lefts), 0
    last = len(boxes) if end is None else end * len(sums.lefts)
    for group in groups(boxes, sub_batch):
        # A group is computed completely, even if only some of its patches are wanted: in a batch of
        # another size, rounding could differ.
        if first - len(group) < number < last:
            for one in score(group).to("cpu")[max(first - number, 0) : last - number]:
                if sums.add(one, dtype):
                    yield sums.row
        number += len(group)


class DiskMapStore:
    """Stores tensors as files until the image is done, also for a process that resumes."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.written_bytes = 0
        """Bytes written by this process."""

    def __setitem__(self, first: Box, tensor: Tensor, /) -> None:
        with tempfile.NamedTemporaryFile(dir=self.folder, delete=False) as file:
            np.save(file, tensor.to(dtype_of_sums(tensor)).numpy())  # NumPy has no bfloat16
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).replace(self._path(first))  # another process may write the same
        self.written_bytes += tensor.nbytes

    def check(self, factor: float) -> None:
        """Raise a `UserError` if the disk cannot hold `factor` times what this process has written."""
        needed = self.written_bytes * factor
        free = shutil.disk_usage(self.folder).free + self.written_bytes
        if needed > free:
            raise UserError(
                f"The patches' feature maps need {needed / 2**30:.1f} GiB in {self.folder.parent} until "
                f"the labels are done, but {free / 2**30:.1f} GiB are free: write to another disk."
            )

    def pop(self, first: Box, /) -> Tensor:
        """The tensor stored for a group."""
        return torch.from_numpy(np.load(self._path(first)))

    def _path(self, first: Box) -> Path:
        return self.folder / f"{first.top}-{first.left}.npy"


def _restore(merger: Merger, path: Path) -> int:
    """Restore a merger's saved state; returns the number of merged groups."""
    state = torch.load(path, map_location=merger.counts[0].device, weights_only=True)
    merger.counts, merger.sums = state["counts"], state["sums"]
    merger.places = [[Box(*box) for box in level] for level in state["places"]]
    merged_groups: int = state["groups"]
    return merged_groups
