"""What the card says, and the clock that waits for it."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pynvml
import torch


class CardSampler:
    """Peak memory of the first visible card inside a block, sampled through NVML by a thread of its
    own.

    NVML tells what this process holds where it can (not across every container's boundary, not with
    every driver); else what the card holds minus what it held at the start, which is right only
    while nothing else uses it. Start it before CUDA is used, so that the context counts either way.
    """

    def __init__(self, interval_s: float = 0.005) -> None:
        self.interval_s = interval_s
        self.peak_bytes = 0
        self.idle_bytes = 0
        """Held by the bare CUDA context; see `mark_idle`."""
        self.how = "card, minus used before"
        self.card: dict[str, Any] = {}
        self.samples = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "CardSampler":
        pynvml.nvmlInit()
        self._handle = _visible_card()
        self.card = {
            "name": pynvml.nvmlDeviceGetName(self._handle),
            "driver": pynvml.nvmlSystemGetDriverVersion(),
            "total_bytes": int(pynvml.nvmlDeviceGetMemoryInfo(self._handle).total),
        }
        self._before = self._used()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._take()
        pynvml.nvmlShutdown()

    def mark_idle(self) -> None:
        """What is held now is the idle context; the peak starts from here."""
        with self._lock:
            self.peak_bytes = 0
        self._take()
        self.idle_bytes = self.peak_bytes

    def _run(self) -> None:
        while not self._stop.wait(self.interval_s):
            self._take()

    def _take(self) -> None:
        own = self._own()
        with self._lock:
            if own is not None:
                self.how = "this process"
            elif self.how == "this process":
                return  # NVML lost sight of us for a moment: no figure of another kind in between
            else:
                own = self._used() - self._before
            self.peak_bytes = max(self.peak_bytes, own)
            self.samples += 1

    def _used(self) -> int:
        return int(pynvml.nvmlDeviceGetMemoryInfo(self._handle).used)

    def _own(self) -> int | None:
        try:
            processes = pynvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        except pynvml.NVMLError:
            return None
        mine = [one.usedGpuMemory for one in processes if one.pid == os.getpid()]
        return int(mine[0]) if mine and mine[0] else None


def card_bytes() -> int | None:
    """Memory of the first visible card, without a CUDA context; None where NVML does not tell."""
    try:
        pynvml.nvmlInit()
        try:
            return int(pynvml.nvmlDeviceGetMemoryInfo(_visible_card()).total)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return None


def _visible_card() -> Any:
    """NVML's handle of the card that CUDA calls 0 (with CUDA_DEVICE_ORDER=PCI_BUS_ID)."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if first.isdigit():
        return pynvml.nvmlDeviceGetHandleByIndex(int(first))
    return pynvml.nvmlDeviceGetHandleByUUID(first)


@contextlib.contextmanager
def clock(device: torch.device) -> Iterator[list[float]]:
    """Seconds of a block, appended to the list at its end; waits for the device on both sides."""
    seconds: list[float] = []
    _wait(device)
    start = time.perf_counter()
    yield seconds
    _wait(device)
    seconds.append(time.perf_counter() - start)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
