"""All memory meters of one run on one image, in the calling process."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench.config import Suite
from bench.files import file_sha256
from bench.memory.cpu_allocator import record_cpu_allocations
from bench.memory.gpu_overhead import blas_bytes, has_tf32
from bench.memory.nvml import NvmlSampler, gpu_bytes
from bench.memory.prediction import Prediction
from bench.memory.rss import PeakResident
from bench.memory.runs import PREDICTED, predict_run
from bench.memory.tracker import bytes_of, tensors_of
from bench.parallel import Report, host_limit_bytes
from bench.run import Run, device_facts, open_evaluated, open_run, set_up

DEFINITIONS = {
    "allocated": (
        "bytes of all tensors alive at the peak of one prediction, the network's weights and the "
        "image and what operators take inside themselves included; on CUDA "
        "torch.cuda.max_memory_allocated, on the CPU what torch's CPU allocator books"
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
    "predicted": PREDICTED,
}
"""What each meter measures; records keep the text beside the number."""
First = Callable[[], tuple[nn.Module, Tensor]]
"""Makes the first prediction of a run, loading included; returns the network and the image."""
Meters = dict[str, dict[str, Any]]


def measure_run(report: Report, suite: Suite, name: str) -> None:
    """Measure and predict the memory of a run's first prediction; to be called in a fresh process.

    Reports the values of a record of the stage `measure`, except for latency. The device and its
    memory are reported first, so that the record of a run that runs out of memory has them too.
    """
    device = set_up(suite.compute)
    threads = suite.compute.shared(suite.compute.jobs).threads
    torch.set_num_threads(threads)
    available = host_limit_bytes() if device.type == "cpu" else gpu_bytes()
    report({"device": device.type, "available_bytes": available, "memory_threads": threads})
    run = open_run(suite, name)
    scene = run.dataset.ids("test")[0]

    def first() -> tuple[nn.Module, Tensor]:
        network = run.network(device)
        image, _ = run.dataset.read(scene)
        run.predict(network, image)
        return network, image

    found = (
        measure_first_on_gpu(first, device)
        if device.type == "cuda"
        else measure_first_on_host(first, run)
    )
    checkpoint = {"checkpoint_sha256": file_sha256(run.checkpoint())}
    report({"provenance": {**device_facts(device, suite.compute), **checkpoint}})
    size = (found.image.shape[-2], found.image.shape[-1])

    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    predicted = predict_run(run, size, device.type)
    found.meters["predicted"] = _predicted(predicted, gpu)
    report(
        {
            "scene": scene,
            "height_px": size[0],
            "width_px": size[1],
            "meters": found.defined,
            "missing": found.missing,
            "part": _compared(run, found, device.type, gpu),
            "parameters": predicted.parameters,
            "flops": predicted.flops,
        }
    )


def _compared(run: Run, found: "Measured", device: str, gpu: str) -> dict[str, int]:
    """Predicted and allocated bytes for a part of the image that has another shape."""
    height, width = found.image.shape[-2] // 2, found.image.shape[-1] // 3
    part = found.image[:, :height, :width].contiguous()
    return {
        "height_px": height,
        "width_px": width,
        "predicted_bytes": expected_allocated_bytes(predict_run(run, (height, width), device), gpu),
        "allocated_bytes": allocated_bytes_of(
            lambda: run.predict(found.network, part), [*tensors_of(found.network), part]
        ),
    }


def predicted_again(suite: Suite, name: str, values: Mapping[str, Any], gpu: str) -> dict[str, Any]:
    """The values of a run's record of the stage `measure`, predicted by the present rules; what was
    measured stays as it is.

    Args:
        gpu: the name of the GPU that was measured; empty for the CPU.
    """
    run, device, part = open_evaluated(suite, name), values["device"], values["part"]
    whole, cut = (
        predict_run(run, (one["height_px"], one["width_px"]), device) for one in (values, part)
    )
    predicted = {**_predicted(whole, gpu), "definition": DEFINITIONS["predicted"]}
    return {
        **values,
        "meters": {**values["meters"], "predicted": predicted},
        "part": {**part, "predicted_bytes": expected_allocated_bytes(cut, gpu)},
    }


def _predicted(found: Prediction, gpu: str) -> dict[str, Any]:
    """What records keep of the prediction of a run."""
    return {
        "bytes": found.device_bytes,
        "expected_allocated_bytes": expected_allocated_bytes(found, gpu),
        "host_bytes": found.host_bytes,
        "reserved_bytes": found.reserved_bytes,
        "allocated_bytes": found.allocated_bytes,
        "tf32_reserved_bytes": found.tf32_reserved_bytes,
        "tf32_allocated_bytes": found.tf32_allocated_bytes,
        "module": found.module,
        "by_category": found.by_category,
        "at": found.at,
        "timeline": found.timeline(),
    }


def predicted_step(found: Prediction, gpu: str, blas_threads: int) -> dict[str, Any]:
    """What records keep of the prediction of a training step.

    Args:
        blas_threads: threads that multiplied matrices in earlier steps of the process.
    """
    threads = max(blas_threads, found.blas_threads)
    return {
        "predicted_bytes": expected_allocated_bytes(found, gpu, threads),
        "blas_threads": threads,
        "by_category": dict(found.by_category),
        "at": found.at,
        "module": found.module,
    }


def expected_allocated_bytes(predicted: Prediction, gpu: str, blas_threads: int = 1) -> int:
    """Bytes that the device's allocator should report for a prediction. CUDA's rounds requests up,
    and its figure includes the cuBLAS workspaces. TF32 counts as allowed in convolutions, which is
    torch's default.

    Args:
        gpu: the GPU's name; empty for the CPU.
        blas_threads: threads of the process that have multiplied matrices: one after `_warm_up`.
    """
    reported = predicted.tf32_allocated_bytes if has_tf32(gpu) else predicted.allocated_bytes
    if reported is None:
        return predicted.device_bytes
    return reported + blas_threads * blas_bytes(gpu)


def allocated_bytes_of(work: Callable[[], object], existing: Sequence[Tensor]) -> int:
    """Peak bytes during `work` that the device's allocator reports, after its libraries are loaded.

    Args:
        existing: tensors that are allocated already, the network's first.
    """
    device = existing[0].device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return int(torch.cuda.max_memory_allocated(device))
    before = bytes_of(existing)
    with record_cpu_allocations() as allocations:
        work()
    return before + allocations.peak_bytes


class Measured(NamedTuple):
    """The first prediction of a run, and its memory."""

    meters: Meters
    network: nn.Module
    image: Tensor
    missing: dict[str, str]
    """Why a meter has no figure, by meter."""

    @property
    def defined(self) -> Meters:
        """The meters with their definitions."""
        return {
            meter: {**values, "definition": DEFINITIONS[meter]}
            for meter, values in self.meters.items()
        }


def measure_first_on_gpu(first: First, device: torch.device) -> Measured:
    """Memory of the first prediction on a CUDA device, by the allocator, NVML and the host."""
    with NvmlSampler() as sampler:
        _warm_up(device)
        sampler.mark_idle()
        torch.cuda.reset_peak_memory_stats(device)
        with PeakResident() as resident:
            network, image = first()
            torch.cuda.synchronize(device)
    meters: Meters = {
        "allocated": {"bytes": torch.cuda.max_memory_allocated(device)},
        "reserved": {"bytes": torch.cuda.max_memory_reserved(device)},
        "rss": _resident(resident),
    }
    if not sampler.samples:
        return Measured(meters, network, image, {"nvml": sampler.missing or sampler.lost})
    meters["nvml"] = {
        "bytes": sampler.peak_bytes,
        "idle_bytes": sampler.idle_bytes,
        "before_bytes": sampler.before_bytes,
        "how": sampler.how,
        "doubt": "; ".join(filter(None, (sampler.doubt, sampler.lost))),
        "interval_s": sampler.interval_s,
        "longest_interval_s": sampler.longest_interval_s,
        "samples": sampler.samples,
        "cpu_share": sampler.cpu_share,
        "card": sampler.gpu,
    }
    return Measured(meters, network, image, {})


def measure_first_on_host(first: First, run: Run) -> Measured:
    """Resident memory of the first prediction, then the allocations of a second one."""
    _warm_up(torch.device("cpu"))
    with PeakResident() as resident:
        network, image = first()
    before = bytes_of([*tensors_of(network), image])
    with record_cpu_allocations() as allocations:
        run.predict(network, image)
    allocated = {"bytes": before + allocations.peak_bytes, "at": "/".join(allocations.operators)}
    return Measured({"allocated": allocated, "rss": _resident(resident)}, network, image, {})


def _resident(resident: PeakResident) -> dict[str, Any]:
    return {
        "bytes": resident.peak_bytes - resident.base_bytes,
        "base_bytes": resident.base_bytes,
        "how": resident.how,
    }


def _warm_up(device: torch.device) -> None:
    """Load libraries, threads and the CUDA context before anything is measured."""
    torch.zeros(8, 8, device=device) @ torch.zeros(8, 8, device=device)
