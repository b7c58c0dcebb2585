"""What the card says through NVML, and the clock that waits for it.

A process is told by its id, which NVML knows as the host does: inside a container with ids of its
own it is not found, and then the card's own figure stands in, less what was there before."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pynvml
import torch

OWN = "this process"
CARD = "card, minus used before"


class CardSampler:
    """Peak memory of the first visible card between start and stop, sampled by a thread of its own.

    NVML tells what this process holds where it can (not across every container's boundary, nor to
    everybody); else what the card holds minus what it held at the start, which is right only while
    nothing else uses it: `doubt` says so where that cannot be ruled out. Start it before CUDA is
    used, so that the context counts either way.

    No failure of NVML is raised. Where it cannot begin, `missing` says why and there is no figure;
    where the card is lost on the way, `lost` says so and what was seen is kept.
    """

    def __init__(self, interval_s: float = 0.02) -> None:
        """`interval_s`: seconds between two samples. torch's allocator keeps what it once took, so
        that its peaks do not pass between them."""
        self.interval_s = interval_s
        self._thread: threading.Thread | None = None
        self._reset()

    def _reset(self) -> None:
        self.missing = self.lost = self.doubt = ""
        self.peak_bytes = 0
        self.idle_bytes = 0
        """Held by the bare CUDA context; see `mark_idle`."""
        self.before_bytes = 0
        """Used on the card at the start."""
        self.how = CARD
        self.card: dict[str, Any] = {}
        self.samples = 0
        self.cpu_share = 0.0
        """Of one core, by the sampling thread."""
        self._others: set[int] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def __enter__(self) -> "CardSampler":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        """Between start and stop, with a card to look at."""
        return self._thread is not None

    def start(self) -> None:
        """Begin anew.

        Raises:
            RuntimeError: it runs already.
        """
        if self.running:
            raise RuntimeError("The sampler runs already: stop it before it is started again.")
        self._reset()
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            self.missing = str(error)
            return
        try:
            self._handle = _visible_card()
            self._read = _reader(self._handle)
            self.card = _facts(self._handle)
            self.before_bytes = self._read()
        except pynvml.NVMLError as error:
            self.missing = str(error)
            pynvml.nvmlShutdown()
            return
        self._others = set(_processes(self._handle) or {}) - {os.getpid()}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take a last sample and end; nothing happens where it does not run."""
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        self._thread = None
        self._take()
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()

    def mark_idle(self) -> None:
        """What is held now is the idle context; the peak starts from here."""
        with self._lock:
            self.peak_bytes = 0
        if self.running:
            self._take()
        self.idle_bytes = self.peak_bytes

    def _run(self) -> None:
        begun = time.perf_counter()
        while not self._stop.wait(self.interval_s) and not self.lost:
            self._take()
        self.cpu_share = time.thread_time() / max(time.perf_counter() - begun, 1e-9)

    def _take(self) -> None:
        with self._lock:
            if self.lost:
                return
            try:
                self._look()
            except pynvml.NVMLError as error:
                self.lost = f"the card was lost after {self.samples} samples: {error}"

    def _look(self) -> None:
        held = _processes(self._handle)
        own = held.get(os.getpid()) if held else None
        if own:
            self.how = OWN
            self.doubt = ""
        elif self.how == OWN:
            return  # NVML lost sight of us for a moment: no figure of another kind in between
        else:
            self._doubt(held)
            own = self._read() - self.before_bytes
        self.peak_bytes = max(self.peak_bytes, own)
        self.samples += 1

    def _doubt(self, held: dict[int, int | None] | None) -> None:
        """Whether something else may be in the card's own figure."""
        if held is None:
            self.doubt = "NVML does not list processes here: others may have used the card"
        elif self._others:
            self.doubt = f"{len(self._others)} other processes were on the card from the start"
        elif len(held) > 1:  # one of them is this one, under an id that is not known here
            self.doubt = f"{len(held) - 1} other processes came to the card meanwhile"


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
    """NVML's handle of the card that CUDA calls 0 (with CUDA_DEVICE_ORDER=PCI_BUS_ID), or of its
    first instance where it is cut into several (MIG), of which CUDA sees no other."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if not first.isdigit():
        return pynvml.nvmlDeviceGetHandleByUUID(first)
    card = pynvml.nvmlDeviceGetHandleByIndex(int(first))
    if _told(lambda: pynvml.nvmlDeviceGetMigMode(card)[0]):
        return pynvml.nvmlDeviceGetMigDeviceHandleByIndex(card, 0)
    return card


def _reader(card: Any) -> Callable[[], int]:
    """Used bytes of a card: without the part that the driver keeps, where it is new enough to tell
    them apart (nvmlDeviceGetMemoryInfo_v2)."""
    version = pynvml.nvmlMemory_v2
    try:
        pynvml.nvmlDeviceGetMemoryInfo(card, version)
    except (pynvml.NVMLError_FunctionNotFound, pynvml.NVMLError_NotSupported):
        return lambda: int(pynvml.nvmlDeviceGetMemoryInfo(card).used)
    return lambda: int(pynvml.nvmlDeviceGetMemoryInfo(card, version).used)


def _processes(card: Any) -> dict[int, int | None] | None:
    """Bytes by process id, None for bytes that are not told (as under Windows' own driver model);
    None where processes are not told at all.

    Raises:
        pynvml.NVMLError: the card is gone.
    """
    for ask in (
        pynvml.nvmlDeviceGetComputeRunningProcesses_v3,
        pynvml.nvmlDeviceGetComputeRunningProcesses_v2,  # drivers before 510
    ):
        try:
            return {one.pid: one.usedGpuMemory for one in ask(card)}
        except pynvml.NVMLError_FunctionNotFound:
            continue
        except (pynvml.NVMLError_NoPermission, pynvml.NVMLError_NotSupported):
            return None
    return None


def _facts(card: Any) -> dict[str, Any]:
    """What a record says of a card; None for what its driver does not tell."""

    def clock(ask: Callable[[Any, int], int], kind: int) -> Any:
        return _told(lambda: int(ask(card, kind)))

    now, most = pynvml.nvmlDeviceGetClockInfo, pynvml.nvmlDeviceGetMaxClockInfo
    return {
        "name": pynvml.nvmlDeviceGetName(card),
        "uuid": _told(lambda: pynvml.nvmlDeviceGetUUID(card)),
        "driver": _told(pynvml.nvmlSystemGetDriverVersion),
        "total_bytes": int(pynvml.nvmlDeviceGetMemoryInfo(card).total),
        "sm_clock_mhz": clock(now, pynvml.NVML_CLOCK_SM),
        "sm_clock_most_mhz": clock(most, pynvml.NVML_CLOCK_SM),
        "memory_clock_mhz": clock(now, pynvml.NVML_CLOCK_MEM),
        "memory_clock_most_mhz": clock(most, pynvml.NVML_CLOCK_MEM),
        "ecc": _told(lambda: bool(pynvml.nvmlDeviceGetEccMode(card)[0])),
        "power_limit_w": _told(lambda: pynvml.nvmlDeviceGetEnforcedPowerLimit(card) / 1000),
        "instance_of_a_card": _told(lambda: bool(pynvml.nvmlDeviceIsMigDeviceHandle(card).value)),
    }


def _told(ask: Callable[[], Any]) -> Any:
    """An answer, or None from a driver that does not give it."""
    try:
        return ask()
    except pynvml.NVMLError:
        return None


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
