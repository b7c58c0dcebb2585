"""Bands of one image, labelled by several processes that see the folder of the unfinished image.

A band is some rows of patches. It also scores the rows above that reach into it, so that each sum is added
in the order of one process; patches meet in the same groups. Where maps of all patches are merged first,
bands of groups compute them, and the head adds them in order."""

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from bench.errors import UserError
from bench.run import device_facts, save, set_up
from bench.streaming.image import CHUNK_BYTES, MERGED, LargeImage, add_patches, score_sums
from bench.streaming.job import Job
from bench.streaming.partial import FINGERPRINT, State, partial_folder
from bench.streaming.planes import Plane
from bench.tiling import Box, Merger, cover

Step = Literal["maps", "labels"]
Rows = tuple[int, int]
"""From one row of patches, or group of them, to before another."""
LEAST_ROWS = 8
"""In a band, where workers have several: each scores some of those above it again."""
MOST_BANDS = 4
"""For each worker, so that little is lost with one."""


@dataclass(frozen=True)
class Spread:
    """Other processes that label bands."""

    workers: int
    label: Callable[[Job, Step, Sequence[Rows]], None]
    """Has `label_band` called for each band, by a worker with the same job."""

    def bands(self, count: int) -> list[Rows]:
        """So many rows in bands."""
        each = max(1, min(MOST_BANDS, count // (LEAST_ROWS * self.workers)))
        size = -(-count // (self.workers * each))
        return [(first, min(first + size, count)) for first in range(0, count, size)]


def band_file(folder: Path, step: Step, rows: Rows) -> Path:
    """The result of a band; it appears when it is complete."""
    return folder / f"{step}-{rows[0]}-{rows[1]}"


class SpreadImage(LargeImage):
    """At the head: waits for bands and puts them together."""

    spread: Spread
    job: Job

    def _each_band(self, step: Step, count: int) -> Iterator[tuple[Rows, Path]]:
        """The bands and their files, once all are there; an earlier process may have made some."""
        bands = {
            rows: band_file(self.partial.folder, step, rows) for rows in self.spread.bands(count)
        }
        missing = [rows for rows, path in bands.items() if not path.exists()]
        self.spread.label(self.job, step, missing)
        return iter(bands.items())

    def sum_up(self, boxes: Sequence[Box], *_: Any) -> None:
        """As `LargeImage.sum_up`."""
        edges = _edges(boxes)
        for (first, end), path in self._each_band("labels", len(edges) - 1):
            top, height, width = edges[first], edges[end] - edges[first], self.shape[2]
            with contextlib.closing(Plane(path, height, width)) as band:
                for box in cover((height, width), (max(1, CHUNK_BYTES // width), width)):
                    self.labels.write(top + box.top, 0, band.read(*box))

    def pending_groups(
        self, groups: Iterable[Sequence[Box]], merger: Merger
    ) -> Iterator[Sequence[Box]]:
        """As `LargeImage.pending_groups`, but all groups are merged here."""
        todo = list(groups)
        if not (self.partial.folder / MERGED).exists():
            for rows, path in self._each_band("maps", len(todo)):
                found = torch.load(path, map_location="cpu", weights_only=True)
                for group, (maps, loose) in zip(todo[slice(*rows)], found, strict=True):
                    merger.add(maps, group, loose)
            self.save_merged(merger, len(todo))
        return super().pending_groups(todo, merger)


class Band(LargeImage):
    """At a worker: the image in the head's folder, of which one step is done for one band."""

    step: Step
    rows: Rows
    scratch: Path

    def sum_up(
        self,
        boxes: Sequence[Box],
        sub_batch: int,
        score: Callable[[Sequence[Box]], Tensor],
        dtype: torch.dtype | None,
    ) -> None:
        """Write the labels of the band."""
        edges = _edges(boxes)
        begin, end = (edges[row] for row in self.rows)
        first = next(row for row, top in enumerate(edges) if top + boxes[0].height > begin)
        path = self.scratch / "labels"
        labels = Plane(path, end - begin, self.shape[2])

        def write(top: int, left: int, window: Tensor) -> None:
            if top >= begin:
                labels.write(top - begin, left, window.numpy())

        with contextlib.closing(labels), score_sums(boxes, self.scratch, write, first) as sums:
            for _ in add_patches(sums, boxes, sub_batch, score, dtype, self.rows[1]):
                pass
            labels.file.sync()
        path.replace(band_file(self.partial.folder, "labels", self.rows))

    def pending_groups(
        self, groups: Iterable[Sequence[Box]], merger: Merger
    ) -> Iterator[Sequence[Box]]:
        """The groups whose maps are wanted; none in the step `labels`, when all are merged."""
        if self.step == "labels":
            yield from super().pending_groups(groups, merger)
            return
        todo = list(groups)
        kept: list[Any] = []

        def keep(maps: list[list[Tensor]], loose: bool) -> None:
            kept.append(([[level.cpu() for level in kind] for kind in maps], loose))

        merger.keep = keep
        for group in todo[slice(*self.rows)]:
            yield group
            if len(kept) == 1 and self._map_store:
                self._map_store.check(len(todo))
        save(band_file(self.partial.folder, "maps", self.rows), kept)
        raise _MapsDone


class _MapsDone(Exception):
    """Ends a strategy after its first step."""


def _edges(boxes: Sequence[Box]) -> list[int]:
    """The first row of pixels of each row of patches, and the end of the last."""
    return [*sorted({box.top for box in boxes}), boxes[-1].top + boxes[-1].height]


def label_band(output: Path, job: Job, step: Step, rows: Rows) -> None:
    """Do one step for one band of an image that another process has begun to label.

    Raises:
        UserError: labels could differ from those that the process would compute itself.
    """
    folder = partial_folder(output)
    begun = json.loads((folder / FINGERPRINT).read_text())
    height, width = begun["size"]
    device = set_up(job.compute)
    network, weights = job.network()
    own = {**job.fingerprint(), "weights": weights, **device_facts(device, job.compute)}
    own = json.loads(json.dumps(own))
    if different := [key for key in own if own[key] != begun.get(key)]:
        raise UserError(
            f"This worker has {different[0]} {own[different[0]]}, but {output} was begun with "
            f"{begun.get(different[0])}: use machines and environments of one kind."
        )
    streamed = job.run.strategy.by_windows(job.run.spec)
    assert streamed
    with (
        tempfile.TemporaryDirectory(dir=folder) as scratch,
        contextlib.closing(Plane(folder / "pixels", height, width, 3)) as pixels,
        torch.inference_mode(),
        contextlib.suppress(_MapsDone),
    ):
        image = Band(pixels, pixels, State(folder), lambda *_, **__: tqdm(disable=True))
        image.step, image.rows, image.scratch = step, rows, Path(scratch)
        streamed(network.to(device), image, job.run.spec)
