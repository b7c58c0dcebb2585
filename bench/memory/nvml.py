"""What the GPU reports through NVML.

A process is told by its id, which NVML knows as the host does: inside a container with ids of its
own it is not found, and then the card's own figure stands in, less what was there before."""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pynvml

from bench.errors import UserError

OWN_PROCESS = "this process"
WHOLE_GPU = "card, minus used before"

MOST_CPU_SHARE = 0.015
"""Of one core: a driver that answers slowly is asked less often."""
IDLE_GPU_BYTES = 64 * 2**20
"""What a card may hold while nobody uses it: assumed, no driver documents it."""


class NvmlSampler:
    """Peak memory of the first visible card between start and stop, sampled by a thread of its own.

    NVML tells what this process holds where it can (not across every container's boundary, nor to
    everybody); else what the card holds minus what it held at the start, which is right only while
    nothing else uses it: `doubt` says so where that cannot be ruled out. Start it before CUDA is
    used, so that the context counts either way, and so that whoever is listed under this process's
    number at the start is known to be another, as a container's numbers may be.

    No failure of NVML is raised. Where it cannot begin, `missing` says why and there is no figure;
    where the card is lost on the way, `lost` says so and what was seen is kept.
    """

    def __init__(self, interval_s: float = 0.02) -> None:
        """`interval_s`: seconds between two samples, more where NVML is slow (MOST_CPU_SHARE).
        torch's allocator keeps what it once took, so that its peaks do not pass between them."""
        self.interval_s = interval_s
        self._thread: threading.Thread | None = None
        self._reset()

    def _reset(self) -> None:
        self.missing = self.lost = ""
        self.peak_bytes = 0
        self.idle_bytes = 0
        """Held by the bare CUDA context; see `mark_idle`."""
        self.before_bytes = 0
        """Used on the card at the start."""
        self.how = WHOLE_GPU
        self.gpu: dict[str, Any] = {}
        self.samples = 0
        self.cpu_share = 0.0
        """Of one core, by the sampling thread."""
        self.longest_interval_s = 0.0
        """The longest that the thread waited between two samples."""
        self._others: set[int] = set()
        self._most = self._drawing = 0
        self._blind = self._marked = False
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def __enter__(self) -> "NvmlSampler":
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
            self._handle = _visible_gpu()
            self._version = _version(self._handle)
            self.gpu = _facts(self._handle, self._version)
            self.before_bytes = self._used()
            self._others = {*self._listed("Compute"), *self._listed("Graphics")}
        except (pynvml.NVMLError, UserError) as error:
            self.missing = str(error)
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()
            return
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
            self._drawing = len(set(self._listed("Graphics")) - self._others)
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()

    def mark_idle(self) -> None:
        """What is held now is the idle context, and the peak starts from here; nothing happens
        where it does not run."""
        if self.running:
            self._take(idle=True)

    @property
    def doubt(self) -> str:
        """Why something else may be in the card's own figure; empty where nothing speaks for it."""
        if self.how == OWN_PROCESS or not self.samples:
            return ""
        if self._blind:
            return "NVML does not list processes here: others may have used the card"
        if self._others:
            return f"{len(self._others)} other processes were on the card from the start"
        came = max(self._most - 1, 0) + self._drawing  # one is this one, by an id not known here
        if came:
            return f"{came} other processes came to the card meanwhile"
        if self.before_bytes > IDLE_GPU_BYTES:
            return f"{self.before_bytes} bytes were in use before, by nobody whom NVML lists"
        if not self._most and self.peak_bytes:
            return "NVML lists nobody, not even this process: others may have used the card"
        return ""

    def _run(self) -> None:
        begun = time.perf_counter()
        wait, spent = self.interval_s, 0.0
        while not self._stop.wait(wait) and not self.lost:
            self.longest_interval_s = max(self.longest_interval_s, wait)
            self._take()
            last, spent = spent, time.thread_time()
            wait = max(self.interval_s, (spent - last) / MOST_CPU_SHARE)
        self.cpu_share = time.thread_time() / max(time.perf_counter() - begun, 1e-9)

    def _take(self, idle: bool = False) -> None:
        with self._lock:
            if self.lost:
                return
            try:
                self._look(idle)
            except pynvml.NVMLError as error:
                self.lost = f"the card was lost after {self.samples} samples: {error}"

    def _look(self, idle: bool) -> None:
        held = self._listed("Compute")
        own = None if os.getpid() in self._others else held.get(os.getpid())
        anew = idle
        if own and not (self._marked and self.how == WHOLE_GPU):  # idle and peak are of one kind
            anew = anew or self.how == WHOLE_GPU
            self.how = OWN_PROCESS
        elif self.how == OWN_PROCESS:
            return  # NVML lost sight of us for a moment: no figure of another kind in between
        else:
            own = self._used() - self.before_bytes
            self._most = max(self._most, len(held))
        self.peak_bytes = own if anew else max(self.peak_bytes, own)
        self.samples += 1
        if idle:
            self.idle_bytes = own
            self._marked = True

    def _used(self) -> int:
        return int(pynvml.nvmlDeviceGetMemoryInfo(self._handle, self._version).used)

    def _listed(self, kind: str) -> dict[int, int | None]:
        held = _processes(self._handle, kind)
        self._blind = self._blind or (held is None and kind == "Compute")
        return held or {}


def gpu_bytes() -> int | None:
    """Memory of the first visible card, without a CUDA context; None where NVML does not tell."""
    try:
        pynvml.nvmlInit()
        try:
            return int(pynvml.nvmlDeviceGetMemoryInfo(_visible_gpu()).total)
        finally:
            pynvml.nvmlShutdown()
    except (pynvml.NVMLError, UserError):
        return None


def _visible_gpu() -> Any:
    """NVML's handle of the card that CUDA calls 0 (with CUDA_DEVICE_ORDER=PCI_BUS_ID), or of its
    first instance where it is cut into several (MIG), of which CUDA sees no other.

    Raises:
        UserError: NVML has no such card, or it is named in a way that NVML does not know.
    """
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if not first.isdigit():
        try:
            return pynvml.nvmlDeviceGetHandleByUUID(first)
        except (pynvml.NVMLError_NotFound, pynvml.NVMLError_InvalidArgument) as error:
            raise UserError(
                f"CUDA_VISIBLE_DEVICES begins with {first!r}, which NVML does not know: name a "
                "card by its index or its whole UUID, an instance of a card by its whole UUID."
            ) from error
    handle = pynvml.nvmlDeviceGetHandleByIndex(int(first))
    if _or_none(lambda: pynvml.nvmlDeviceGetMigMode(handle)[0]):
        return pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, 0)
    return handle


def _version(handle: Any) -> int | None:
    """Of nvmlDeviceGetMemoryInfo: 2, whose `used` is without the part that the driver keeps
    (`reserved`), where the driver is new enough; None for the first."""
    try:
        pynvml.nvmlDeviceGetMemoryInfo(handle, pynvml.nvmlMemory_v2)
    except (pynvml.NVMLError_FunctionNotFound, pynvml.NVMLError_NotSupported):
        return None
    return int(pynvml.nvmlMemory_v2)


def _processes(handle: Any, kind: str) -> dict[int, int | None] | None:
    """Bytes by process id, None for bytes that are not told (as under Windows' own driver model);
    None where processes are not told at all. `kind`: Compute or Graphics.

    Raises:
        pynvml.NVMLError: the card is gone.
    """
    for version in ("v3", "v2"):  # v2: drivers before 510
        query = getattr(pynvml, f"nvmlDeviceGet{kind}RunningProcesses_{version}")
        try:
            return {one.pid: one.usedGpuMemory for one in query(handle)}
        except pynvml.NVMLError_FunctionNotFound:
            continue
        except (pynvml.NVMLError_NoPermission, pynvml.NVMLError_NotSupported):
            return None
    return None


def _facts(handle: Any, version: int | None) -> dict[str, Any]:
    """What a record says of a card; None for what its driver does not tell."""

    def clock(query: Callable[[Any, int], int], kind: int) -> Any:
        return _or_none(lambda: int(query(handle, kind)))

    now, most = pynvml.nvmlDeviceGetClockInfo, pynvml.nvmlDeviceGetMaxClockInfo
    return {
        "name": _or_none(lambda: pynvml.nvmlDeviceGetName(handle)),
        "uuid": _or_none(lambda: pynvml.nvmlDeviceGetUUID(handle)),
        "driver": _or_none(pynvml.nvmlSystemGetDriverVersion),
        "total_bytes": int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
        "used_told_by": f"nvmlDeviceGetMemoryInfo{'_v2' if version else ''}",
        "sm_clock_mhz": clock(now, pynvml.NVML_CLOCK_SM),
        "sm_clock_most_mhz": clock(most, pynvml.NVML_CLOCK_SM),
        "memory_clock_mhz": clock(now, pynvml.NVML_CLOCK_MEM),
        "memory_clock_most_mhz": clock(most, pynvml.NVML_CLOCK_MEM),
        "ecc": _or_none(lambda: bool(pynvml.nvmlDeviceGetEccMode(handle)[0])),
        "power_limit_w": _or_none(lambda: pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000),
        "instance_of_a_card": _or_none(
            lambda: bool(pynvml.nvmlDeviceIsMigDeviceHandle(handle).value)
        ),
    }


def _or_none(query: Callable[[], Any]) -> Any:
    """An answer, or None from a driver that does not give it."""
    try:
        return query()
    except pynvml.NVMLError:
        return None
