"""Predicted memory of labelling an image, and settings that fit a limit.

Predicted memory is the sum of the memory that the process already holds, the tensors by `predict_run`,
and buffers (`BUFFER_BYTES`). By windows the tensors are those of one group of patches, so that memory
does not depend on the image; in memory they include the whole image."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import psutil

from bench.errors import UserError
from bench.memory.runs import largest, predict_run
from bench.run import Run
from bench.streaming.raster import BLOCK_BYTES
from data.image_header import CACHE_BYTES

GIB = 2**30
BUFFER_BYTES = CACHE_BYTES + BLOCK_BYTES + 2**26
"""GDAL's cache, the largest decoded block, and chunks of rows, some of them twice."""

MOST_AT_ONCE = 64
"""Patches in a group."""

Size = tuple[int, int]


@dataclass(frozen=True)
class MemoryNeed:
    """Predicted memory for one image."""

    host_bytes: int
    """Resident memory of the whole process."""
    gpu_bytes: int
    """Memory reserved by PyTorch on a CUDA device; 0 on the CPU."""

    @property
    def bytes(self) -> int:
        """The larger of the two; a limit applies to both."""
        return max(self.host_bytes, self.gpu_bytes)


def fit_memory(
    run: Run, size: Size, device: str, budget: int | None
) -> tuple[Run, MemoryNeed, bool]:
    """The run with the largest sub-batch whose predicted memory is within a limit: up to the run's own
    on the CPU, where larger groups are no faster, and up to `MOST_AT_ONCE` on a GPU.

    Args:
        size: (H, W) of the image in pixels.
        budget: bytes; None: no limit by windows, otherwise the free memory.

    Returns:
        the run, its predicted memory, and whether it works by windows.

    Raises:
        UserError: even one patch at a time does not fit.
    """
    by_windows = run.strategy.by_windows(run.spec) is not None
    if budget is None and not by_windows:
        budget = psutil.virtual_memory().available

    @cache
    def with_patches(number: int) -> tuple[Run, MemoryNeed]:
        varied = run.varied(sub_batch=number) if own else run
        return varied, need(varied, size, device, by_windows)

    own = getattr(run.spec, "sub_batch", 0)
    if budget is None:
        return *with_patches(own), by_windows
    most = MOST_AT_ONCE if own and device == "cuda" else max(own, 1)
    fitting, _, _ = largest(lambda number: with_patches(number)[1].bytes, budget, 1, most)
    varied, needed = with_patches(fitting or 1)
    if fitting:
        return varied, needed, by_windows
    needs = f"{run.name} needs {_gib(needed.bytes)}"
    if by_windows:
        raise UserError(
            f"{needs} even with one patch at a time, more than the limit of {_gib(budget)}: "
            f"use --max-memory {_gib(needed.bytes)}, or a network with smaller patches."
        )
    strategies = run.method.strategies.items()
    others = [name for name, strategy in strategies if strategy.by_windows(run.spec)]
    advice = (
        f"use a run with strategy {' or '.join(others)}, which work by windows"
        if others
        else "use a method that works by windows"
    )
    raise UserError(
        f"{needs} for {size[0]} x {size[1]} px, since strategy "
        f"{run.config.strategy} processes a whole image with these settings, and has "
        f"{_gib(budget)}: {advice}, a smaller image, or a machine with more memory."
    )


def need(run: Run, size: Size, device: str, by_windows: bool) -> MemoryNeed:
    """Predicted memory for an image of `size` (H, W) px."""
    found = predict_run(run, _group(run.spec, size) if by_windows else size, device)
    # Loading holds the weights twice: in the checkpoint's tensors and in the network.
    tensors = max(found.host_bytes, 2 * found.weights_bytes)
    buffers = BUFFER_BYTES if by_windows else BUFFER_BYTES + 3 * size[0] * size[1]
    return MemoryNeed(_resident_bytes() + tensors + buffers, found.reserved_bytes or 0)


def _resident_bytes() -> int:
    """Memory that this process already holds, mostly libraries."""
    return int(psutil.Process().memory_info().rss)


def _group(spec: Any, size: Size) -> Size:
    """Size of an image whose patches form one group, or of one with a group's whole contexts."""
    square: Any = getattr(spec, "context_px", None) or getattr(spec, "size_px", 0)
    height, width = getattr(spec, "patch_size", (square, square))
    count, overlap = getattr(spec, "sub_batch", 1), getattr(spec, "overlap_px", 0)
    wide = width + (count - 1) * (width - overlap)
    return min(size[0], height), min(size[1], wide)


def _gib(count: int) -> str:
    return f"{-(-count * 100 // GIB) / 100:.2f}GiB"
