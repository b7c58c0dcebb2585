"""GPU memory that NVML reports.

NVML identifies a process by its id on the host. A container with its own process ids is therefore
not found; the figure is then the memory in use on the whole GPU, less the memory in use before."""

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
"""Of one core: where the driver answers slowly, samples are taken less often."""
IDLE_GPU_BYTES = 64 * 2**20
"""Bytes that an unused GPU may report as used: assumed, no driver documents it."""


class NvmlSampler:
    """Peak memory on the first visible GPU between start and stop, sampled by a separate thread.

    The figure is of this process where NVML reports it (not in every container, nor with every
    permission). Otherwise it is the memory in use on the GPU minus the memory in use at the start,
    which is right only if no other process uses the GPU; where that cannot be ruled out, `doubt`
    gives the reason. Start the sampler before CUDA is used: then the figure includes the context,
    and a process that is listed under this process's id at the start is known to be another one,
    as happens in containers.

    Failures of NVML are not raised. If it cannot start, `missing` gives the reason and there is no
    figure; if the GPU is lost later, `lost` gives the reason and the samples so far are kept.
    """

    def __init__(self, interval_s: float = 0.02) -> None:
        """`interval_s`: seconds between two samples, more where NVML is slow (MOST_CPU_SHARE).
        torch's allocator keeps its segments, so that no peak falls between two samples."""
        self.interval_s = interval_s
        self._thread: threading.Thread | None = None
        self._reset()

    def _reset(self) -> None:
        self.missing = self.lost = ""
        self.peak_bytes = 0
        self.idle_bytes = 0
        """Held by the CUDA context alone; see `mark_idle`."""
        self.before_bytes = 0
        """In use on the GPU at the start."""
        self.how = WHOLE_GPU
        self.gpu: dict[str, Any] = {}
        self.samples = 0
        self.cpu_share = 0.0
        """Of one core, by the sampling thread."""
        self.longest_interval_s = 0.0
        """The longest wait between two samples."""
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
        """Whether it samples: between start and stop, with a GPU."""
        return self._thread is not None

    def start(self) -> None:
        """Reset all figures and start sampling.

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
        """Take a last sample and stop; does nothing if it does not run."""
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
        """Record the memory held now as that of the idle context, and restart the peak from here;
        does nothing if it does not run."""
        if self.running:
            self._take(idle=True)

    @property
    def doubt(self) -> str:
        """Why the figure may include memory of other processes; empty if nothing indicates it."""
        if self.how == OWN_PROCESS or not self.samples:
            return ""
        if self._blind:
            return "NVML does not list processes here: others may have used the card"
        if self._others:
            return f"{len(self._others)} other processes were on the card from the start"
        came = max(self._most - 1, 0) + self._drawing  # one is this process, under its host id
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
            return  # briefly not listed: do not mix in a figure of the other kind
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
    """Memory of the first visible GPU, without a CUDA context; None where NVML does not report it."""
    try:
        pynvml.nvmlInit()
        try:
            return int(pynvml.nvmlDeviceGetMemoryInfo(_visible_gpu()).total)
        finally:
            pynvml.nvmlShutdown()
    except (pynvml.NVMLError, UserError):
        return None


def _visible_gpu() -> Any:
    """NVML's handle of CUDA's device 0 (with CUDA_DEVICE_ORDER=PCI_BUS_ID); of its first instance
    where the GPU is partitioned (MIG), because CUDA uses no other.

    Raises:
        UserError: CUDA_VISIBLE_DEVICES names a device that NVML does not know.
    """
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if not first.isdigit():
        try:
            return pynvml.nvmlDeviceGetHandleByUUID(first)
        except (pynvml.NVMLError_NotFound, pynvml.NVMLError_InvalidArgument) as error:
            raise UserError(
                f"CUDA_VISIBLE_DEVICES begins with {first!r}, which NVML does not know: name a "
                "GPU by its index or its whole UUID, a MIG instance by its whole UUID."
            ) from error
    handle = pynvml.nvmlDeviceGetHandleByIndex(int(first))
    modes = _or_none(pynvml.nvmlDeviceGetMigMode, handle)
    if modes and modes[0]:
        return pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, 0)
    return handle


def _version(handle: Any) -> int | None:
    """Version of nvmlDeviceGetMemoryInfo: 2, whose `used` excludes the driver's `reserved` memory,
    if the driver supports it; else None."""
    try:
        pynvml.nvmlDeviceGetMemoryInfo(handle, pynvml.nvmlMemory_v2)
    except (pynvml.NVMLError_FunctionNotFound, pynvml.NVMLError_NotSupported):
        return None
    return int(pynvml.nvmlMemory_v2)


def _processes(handle: Any, kind: str) -> dict[int, int | None] | None:
    """Bytes by process id, None for bytes that NVML does not report (Windows' WDDM driver model);
    None if it lists no processes at all. `kind`: Compute or Graphics.

    Raises:
        pynvml.NVMLError: the GPU is lost.
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
    """What a record says of the GPU; None for what its driver does not report."""

    clocks = {
        f"{name}_clock{limit}_mhz": _or_none(query, handle, kind)
        for name, kind in (("sm", pynvml.NVML_CLOCK_SM), ("memory", pynvml.NVML_CLOCK_MEM))
        for limit, query in (
            ("", pynvml.nvmlDeviceGetClockInfo),
            ("_max", pynvml.nvmlDeviceGetMaxClockInfo),
        )
    }
    ecc = _or_none(pynvml.nvmlDeviceGetEccMode, handle)
    power_mw = _or_none(pynvml.nvmlDeviceGetEnforcedPowerLimit, handle)
    instance = _or_none(pynvml.nvmlDeviceIsMigDeviceHandle, handle)
    return {
        "name": _or_none(pynvml.nvmlDeviceGetName, handle),
        "uuid": _or_none(pynvml.nvmlDeviceGetUUID, handle),
        "driver": _or_none(pynvml.nvmlSystemGetDriverVersion),
        "total_bytes": int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
        "used_bytes_from": f"nvmlDeviceGetMemoryInfo{'_v2' if version else ''}",
        **clocks,
        "ecc": None if ecc is None else bool(ecc[0]),
        "power_limit_w": None if power_mw is None else power_mw / 1000,
        "mig_instance": None if instance is None else bool(instance.value),
    }


def _or_none(query: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a query, or None if the driver does not support it."""
    try:
        return query(*arguments)
    except pynvml.NVMLError:
        return None
