"""GPU memory beside the predicted bytes: the CUDA context, and the workspaces of libraries.

Neither can be computed. The context depends on the driver, the GPU and the loaded kernels; some of
cuDNN's workspaces depend on the algorithm that it chooses. Each is therefore one constant per GPU
family, assumed until records of that GPU replace it."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

MIB = 2**20


@dataclass(frozen=True)
class GpuOverhead:
    """Bytes to add to the reserved bytes for the process total (NVML)."""

    family: str
    context_bytes: int
    workspace_bytes: int
    measured: bool
    source: str


BLAS_BYTES = (4096 * 2 + 16 * 8) * 2**10
"""Of cuBLAS's workspace, which torch allocates at a thread's first matrix product and keeps
(CUDABlas.cpp, :4096:2:16:8)."""
HOPPER_BLAS_BYTES = 32 * MIB
HOPPER = ("H100", "H200", "GH200", "H800", "H20")


def blas_bytes(name: str) -> int:
    """Bytes of one cuBLAS workspace on the GPU `name`. Each thread that multiplies matrices has
    one; autograd has its own thread."""
    return HOPPER_BLAS_BYTES if any(family in name.upper() for family in HOPPER) else BLAS_BYTES


WITHOUT_TF32 = r"\b(GTX|TITAN|Quadro|RTX 20\d0|Tesla|[TV]\d+|[KMP]\d+|GV100)\b"


def has_tf32(name: str) -> bool:
    """Whether the GPU `name` is of the Ampere generation or later, judged by its name; an empty
    name counts as later."""
    return not re.search(WITHOUT_TF32, name, re.IGNORECASE)


# A workspace of 0 is assumed: cuDNN's implicit GEMM needs none, and other workspaces are released.
KNOWN_GPUS = (
    GpuOverhead(
        "H100",
        686 * MIB,
        0,
        True,
        "results/card/h100.json: 686 to 688 MiB beside the segments in 50 runs, driver 580.159",
    ),
    GpuOverhead(
        "RTX 6000 Ada",
        426 * MIB,
        0,
        False,
        "reported for torch 2.10 with CUDA 13.0, unslothai/unsloth-zoo pull request 1053",
    ),
    GpuOverhead(
        "any other",
        287_047_680 - 20 * MIB,
        0,
        False,
        "reported in pytorch/pytorch pull request 86509 with lazily loaded kernels, less the "
        "20 MiB segment of its tensor; the card is not named there",
    ),
)


def gpu_overhead_of(name: str, measurements: Iterable[Mapping[str, Any]] = ()) -> GpuOverhead:
    """The overhead of the GPU `name`, or part of it: the median of its records, else a constant.

    Args:
        measurements: values of records of the stage `measure`. Those of GPUs whose name contains
            `name`, without a doubt, are used: the context is the process total less the allocator's
            segments, the workspace is the measured segments less the predicted ones and cuBLAS's.
    """
    own = [
        values["meters"]
        for values in measurements
        if (nvml := values.get("meters", {}).get("nvml"))
        and name
        and name.lower() in str(nvml["card"].get("name")).lower()
        and not nvml.get("doubt")
    ]
    if own:
        tf32 = "tf32_" if has_tf32(name) else ""  # records of earlier predictions lack these copies
        extra = [
            max(meters["reserved"]["bytes"] - segments - blas_bytes(name), 0)
            for meters in own
            if (segments := meters["predicted"].get(f"{tf32}reserved_bytes"))
        ]
        return GpuOverhead(
            family=name,
            context_bytes=int(
                median(meters["nvml"]["bytes"] - meters["reserved"]["bytes"] for meters in own)
            ),
            workspace_bytes=int(median(extra)) if extra else 0,
            measured=True,
            source=f"{len(own)} records of this card",
        )
    return next((gpu for gpu in KNOWN_GPUS if gpu.family.lower() in name.lower()), KNOWN_GPUS[-1])
