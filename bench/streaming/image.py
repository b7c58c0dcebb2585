"""An image on the disk as strategies receive it: `bench.tiling.Large`."""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.errors import UserError
from bench.streaming.partial import Partial
from bench.streaming.planes import ArrayFile, Plane
from bench.streaming.score_sums import Grid, ScoreSums
from bench.tiling import Box, Merger, Size, groups, labels_of, resize, shrink_image

CHUNK_BYTES = 2**22
"""Pixels or scores in memory at once, in steps that do not work by patches."""
BLOCK_PX = 16
"""Columns of a shrunk image that are computed at once."""
SAVE_S = 15.0
"""Seconds between two saved states of merging."""
Progress = Callable[[str, int, int], Any]
"""(title, pixels, those done by an earlier process) -> a progress bar as of `bench.cli`."""


class LargeImage:
    """Pixels are read from a plane, labels written to another; see `bench.tiling.Large`."""

    device = torch.device("cpu")

    def __init__(self, pixels: Plane, labels: Plane, partial: Partial, progress: Progress) -> None:
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
        """Exactly `shrink_image` of the whole: torch also shrinks rows first, rounds to 8 bits, and
        then shrinks columns, so that both can be done in blocks. In between the rows are on the
        disk, 1.5 kB each at 508 px."""
        found = self.partial.folder / f"small-{size[0]}x{size[1]}.npy"
        if f"small {size}" in self.partial.done:
            return torch.from_numpy(np.load(found))
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
        with found.open("wb") as file:
            np.save(file, small.numpy())
        self.partial.note(f"small {size}", 1)
        return small

    def _shrink_rows(self, rows: ArrayFile, width: int) -> None:
        """Into blocks of columns, (H, 3, w) each."""
        height = self.shape[1]
        step = max(1, CHUNK_BYTES // (3 * self.shape[2]))
        bar = self.progress("shrinking", height * self.shape[2], 0)
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
        """Score the patches group by group; labels are written as rows of patches are done."""
        grid = Grid(boxes)
        begun = self.partial.done.get("rows", 0)
        score_sums = ScoreSums(grid, self.partial.folder, self._write, begun)
        with contextlib.closing(score_sums):
            self._sum_up(score_sums, sub_batch, score, dtype)

    def _sum_up(
        self,
        score_sums: ScoreSums,
        sub_batch: int,
        score: Callable[[Sequence[Box]], Tensor],
        dtype: torch.dtype | None,
    ) -> None:
        boxes = score_sums.grid.boxes
        first = score_sums.row * len(score_sums.grid.lefts)
        bar = self._bar("labels", len(boxes), first)
        number = 0
        for group in groups(boxes, sub_batch):
            # A group is computed whole, even if its first patches are done: in another batch,
            # rounding could differ.
            if number + len(group) > first:
                scores = score(group).to(self.device, dtype)
                for place, one in enumerate(scores, number):
                    if place < first:
                        continue
                    box = boxes[place]
                    enlarged = resize(one[None], (box.height, box.width), "nearest")[0]
                    if score_sums.add(enlarged):
                        self.labels.file.sync()
                        self.partial.note("rows", score_sums.row)
                bar.update(self._share(len(boxes), number + len(group) - max(number, first)))
            number += len(group)
        bar.close()

    def enlarge(self, scores: Tensor, mode: str) -> None:
        """Labels of small scores (K, h, w): `nearest` enlarges labels, `bilinear` scores."""
        height, width = self.shape[1:]
        labels = labels_of(scores) if mode == "nearest" else torch.empty(0)
        rows, columns = (
            _nearest(small, large) if mode == "nearest" else _bilinear(small, large)
            for small, large in zip(scores.shape[-2:], (height, width), strict=True)
        )
        step = max(1, int((CHUNK_BYTES / 8 / len(scores)) ** 0.5))
        bar = self.progress("labels", height * width, 0)
        for top in range(0, height, step):
            for left in range(0, width, step):
                down, across = rows[top : top + step], columns[left : left + step]
                if mode == "nearest":
                    window = labels[down.first[:, None], across.first]
                else:
                    window = labels_of(_blend(scores, down, across))
                self._write(top, left, window)
                bar.update(window.numel())
        bar.close()

    def map_store(self) -> "DiskMapStore":
        """A store in the folder of the unfinished image."""
        self._map_store = DiskMapStore(self.partial.folder / "maps")
        return self._map_store

    def pending_groups(
        self, groups: Iterable[Sequence[Box]], merger: Merger
    ) -> Iterator[Sequence[Box]]:
        """The groups that are not merged yet; saves the merger's state every few seconds."""
        todo = list(groups)
        total = sum(map(len, todo))
        path = self.partial.folder / "merged"
        done = self._resume(path, merger) if path.exists() else 0
        bar = self._bar("merging", total, sum(map(len, todo[:done])))
        saved = time.monotonic()
        for number, group in enumerate(todo[done:], done + 1):
            yield group
            bar.update(self._share(total, len(group)))
            if number == 1 and self._map_store:
                self._map_store.check(self._map_store.end // len(group) * total)
            if time.monotonic() - saved > SAVE_S or number == len(todo):
                self._save(path, merger, number)
                saved = time.monotonic()
        bar.close()

    def _save(self, path: Path, merger: Merger, merged_groups: int) -> None:
        index = self._map_store.index if self._map_store else {}
        state = {
            "groups": merged_groups,
            "counts": merger.counts,
            "sums": merger.sums,
            "places": [[tuple(box) for box in level] for level in merger.places],
            "stored": [(tuple(box), *where) for box, where in index.items()],
        }
        if self._map_store:
            self._map_store.file.sync()
        temporary = path.with_suffix(".new")
        torch.save(state, temporary)
        temporary.replace(path)

    def _resume(self, path: Path, merger: Merger) -> int:
        """Restore the merger's saved state; returns the number of groups in it."""
        state = torch.load(path, map_location="cpu", weights_only=True)
        merger.counts = [
            old.to(new) for old, new in zip(state["counts"], merger.counts, strict=True)
        ]
        like = merger.counts[0].device
        merger.sums = [[level.to(like) for level in kind] for kind in state["sums"]]
        merger.places = [[Box(*box) for box in level] for level in state["places"]]
        if self._map_store:
            for box, offset, shape, kind in state["stored"]:
                self._map_store.restore(Box(*box), offset, shape, kind)
        merged_groups: int = state["groups"]
        return merged_groups

    def close(self) -> None:
        """Close the files."""
        stores = [self.pixels.file, self.labels.file]
        for file in [*stores, *([self._map_store.file] if self._map_store else [])]:
            file.close()

    def _write(self, top: int, left: int, labels: Tensor) -> None:
        self.labels.write(top, left, labels.numpy())

    def _bar(self, what: str, patches: int, done: int) -> Any:
        pixels = self.shape[1] * self.shape[2]
        return self.progress(what, pixels, pixels * done // patches)

    def _share(self, patches: int, done: int) -> float:
        """The pixels of the image in proportion to the patches that are done."""
        return self.shape[1] * self.shape[2] * done / patches


class DiskMapStore:
    """Tensors in a file, one after another, until the image is done: a process that resumes reads
    them again."""

    def __init__(self, path: Path) -> None:
        self.file = ArrayFile(path)
        self.index: dict[Box, tuple[int, tuple[int, ...], str]] = {}
        self.end = 0

    def __setitem__(self, first: Box, kept: Tensor, /) -> None:
        self.file.write(kept.contiguous().numpy(), self.end)
        self.restore(first, self.end, tuple(kept.shape), str(kept.dtype).removeprefix("torch."))

    def restore(self, first: Box, offset: int, shape: tuple[int, ...], kind: str) -> None:
        """Add a stored tensor to the index."""
        self.index[first] = (offset, tuple(shape), kind)
        self.end = offset + int(np.prod(shape)) * getattr(torch, kind).itemsize

    def check(self, wanted_bytes: int) -> None:
        """Refuse, after the first group, more data than the disk can hold."""
        free = shutil.disk_usage(self.file.path.parent).free + self.end
        if wanted_bytes > free:
            raise UserError(
                f"The patches' maps need {wanted_bytes / 2**30:.1f} GiB in "
                f"{self.file.path.parent} until the labels are done, and {free / 2**30:.1f} are "
                "free: write to another disk, or take smaller maps (GLNet: --set head=collapsed)."
            )

    def pop(self, first: Box, /) -> Tensor:
        """The stored tensor."""
        offset, shape, kind = self.index[first]
        found = torch.empty(shape, dtype=getattr(torch, kind))
        self.file.read(found.numpy(), offset)
        return found


class Interpolation:
    """For each new pixel along one axis the two old ones around it, and the weight of the second, as
    in `F.interpolate`."""

    def __init__(self, first: Tensor, second: Tensor, share: Tensor) -> None:
        self.first, self.second, self.share = first, second, share

    def __getitem__(self, part: slice) -> "Interpolation":
        return Interpolation(self.first[part], self.second[part], self.share[part])


def _nearest(small: int, large: int) -> Interpolation:
    numbers = torch.arange(small, dtype=torch.float32)[None, None]
    first = F.interpolate(numbers, large, mode="nearest")[0, 0].long()
    return Interpolation(first, first, torch.zeros(large))


def _bilinear(small: int, large: int) -> Interpolation:
    step = torch.tensor(small, dtype=torch.float32) / large
    place = ((torch.arange(large, dtype=torch.float32) + 0.5) * step - 0.5).clamp(min=0)
    first = place.long().clamp(max=small - 1)
    return Interpolation(first, (first + 1).clamp(max=small - 1), (place - first).clamp(0, 1))


def _blend(scores: Tensor, rows: Interpolation, columns: Interpolation) -> Tensor:
    """Bilinear: across, then down, equal to torch's up to the last bit."""

    def across(row: Tensor) -> Tensor:
        line = scores[:, row]
        return (
            line[..., columns.first] * (1 - columns.share)
            + line[..., columns.second] * columns.share
        )

    down = rows.share[:, None]
    return across(rows.first) * (1 - down) + across(rows.second) * down
