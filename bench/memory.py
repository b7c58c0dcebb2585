"""The meters: each is one definition of peak memory, and says so beside its number.

`allocated` and `predicted` share one instrument: a dispatch mode that sees every operator and books
each storage that it makes, once, until it dies. On real tensors it tells what was alive; on fake
tensors it tells the same without computing anything, for any device, in seconds."""

import contextlib
import os
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pynvml
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from bench.method import Method, Strategy, network_for

DEFINITIONS = {
    "allocated": (
        "bytes of all tensors alive at the peak of one prediction, the network's weights and the "
        "image included; on CUDA torch.cuda.max_memory_allocated, on the CPU every storage that an "
        "operator makes is booked (scratch space inside an operator is not seen there)"
    ),
    "reserved": "bytes that torch's caching allocator held: torch.cuda.max_memory_reserved",
    "nvml": (
        "bytes that the card saw, sampled through NVML: of this process where it tells, else used "
        "on the card minus used before; includes the CUDA context, which is also recorded apart"
    ),
    "rss": (
        "peak resident set of a fresh process during its first prediction, less what it held after "
        "loading its libraries: weights, image, activations and the allocator's slack"
    ),
    "predicted": (
        "as allocated, worked out on fake tensors without weights, data or a device: bytes of all "
        "tensors alive at the peak on the device that the network is on"
    ),
}


class Booking(TorchDispatchMode):
    """Books the storage of every tensor that an operator makes, by device, until it is freed.

    A storage that several tensors share counts once. Use as a context manager around the work.
    """

    def __init__(self, existing: Iterable[Tensor] = ()) -> None:
        """`existing`: tensors that are alive already and shall count, for instance the weights."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: dict[str, int] = defaultdict(int)
        """Bytes alive, by device type."""
        self.peak: dict[str, int] = defaultdict(int)
        """Most bytes alive at once, by device type."""
        self.at: dict[str, str] = {}
        """The operator at each peak."""
        self._seen: Any = WeakIdKeyDictionary()
        for tensor in existing:
            self._book(tensor, "before the first operator")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._book(leaf, str(func))
        return result

    def _book(self, tensor: Tensor, operator: str) -> None:
        storage = tensor.untyped_storage()
        if storage in self._seen:
            return
        self._seen[storage] = True
        device, size = tensor.device.type, storage.nbytes()
        self.now[device] += size
        if self.now[device] > self.peak[device]:
            self.peak[device], self.at[device] = self.now[device], operator
        weakref.finalize(storage, self._free, device, size).atexit = False

    def _free(self, device: str, size: int) -> None:
        self.now[device] -= size


def tensors_of(network: torch.nn.Module) -> list[Tensor]:
    """Weights and buffers of a network."""
    return [*network.parameters(), *network.buffers()]


@dataclass(frozen=True)
class Prediction:
    """What one image would cost on a device."""

    device_bytes: int
    host_bytes: int
    """Beside a device that is not the CPU: the image, canvases, kept maps. On the CPU the same as
    `device_bytes`."""
    weights_bytes: int
    at: str
    """The operator at the peak on the device."""
    parameters: int


def predict_memory(
    method: Method,
    strategy: Strategy,
    spec: Any,
    classes: int,
    size: tuple[int, int],
    device: str,
) -> Prediction:
    """Peak memory of one prediction, on fake tensors.

    Args:
        size: (H, W) of the image in pixels.
        device: `cuda` needs no card.
    """
    with torch.device("meta"):
        network = network_for(method, strategy, spec, classes)
    with FakeTensorMode(), torch.inference_mode():
        _refill(network, device)
        image = torch.empty(3, *size, dtype=torch.uint8, device="cpu")
        weights = tensors_of(network)
        booking = Booking([*weights, image])
        with booking:
            strategy.predict(network, image, spec)
    return Prediction(
        device_bytes=booking.peak[device],
        host_bytes=booking.peak["cpu"],
        weights_bytes=sum(tensor.untyped_storage().nbytes() for tensor in weights),
        at=booking.at[device],
        parameters=sum(p.numel() for p in network.parameters()),
    )


def _refill(network: torch.nn.Module, device: str) -> None:
    """Give a network empty tensors on `device`; unlike Module.to, this also works for fake ones."""
    for module in network.modules():
        for name, old in [*module._parameters.items(), *module._buffers.items()]:
            if old is None:
                continue
            new = torch.empty_strided(old.shape, old.stride(), dtype=old.dtype, device=device)
            if name in module._parameters:
                module._parameters[name] = torch.nn.Parameter(new, requires_grad=False)
            else:
                module._buffers[name] = new


class PeakResident:
    """Peak resident set of this process inside a block, above its start.

    Linux keeps a high-water mark that can be reset, so nothing is missed. Where that is refused, or
    elsewhere, a thread samples every 5 ms and can miss shorter peaks; `how` says which it was."""

    def __init__(self) -> None:
        self.base_bytes = 0
        self.peak_bytes = 0
        self.how = "sampled every 5 ms"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "PeakResident":
        self.base_bytes = self.peak_bytes = psutil.Process().memory_info().rss
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
            self.how = "VmHWM, reset before"
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self.how.startswith("VmHWM"):
            self.peak_bytes = max(self.peak_bytes, _high_water())

    def _sample(self) -> None:
        process = psutil.Process()
        while not self._stop.wait(0.005):
            self.peak_bytes = max(self.peak_bytes, process.memory_info().rss)


def _high_water() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


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
