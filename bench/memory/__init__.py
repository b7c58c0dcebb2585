"""Peak memory: predicted without a device, and measured by several meters.

Records keep each meter's definition beside its number.

prediction.py          `predict_memory` of any network, on fake tensors
runs.py                the same of the suite's runs and models
published_settings.py  the UHR methods at the settings for which papers print memory
tracker.py             live tensors, by operator, module and category, and the rules' temporaries
modules.py             the module of a network that runs an operator
replay.py              replays repeated calls, so that 1000 patches take no longer than one
rules/                 temporaries inside operators, on the CPU and on CUDA
cuda_allocator.py      simulation of CUDA's caching allocator
gpu_overhead.py        memory beside the tensors: CUDA context and workspaces
meters.py              all meters of one run, with their definitions
cpu_allocator.py       allocations that torch's CPU allocator reports: `allocated` on the CPU
nvml.py                GPU memory that NVML reports
rss.py                 resident memory of this process
paper_memory.py        one model of all memory figures in the GLNet paper
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.memory.cpu_allocator import record_cpu_allocations
    from bench.memory.gpu_overhead import GpuOverhead, gpu_overhead_of
    from bench.memory.prediction import (
        Mode,
        Prediction,
        Recipe,
        fake_copy,
        inference_work,
        predict_memory,
        training_work,
    )
    from bench.memory.rss import PeakResident
    from bench.memory.runs import Case, largest, predict_case, predict_run, predict_steps
    from bench.memory.tracker import bytes_of, tensors_of

__all__ = [
    "Case",
    "GpuOverhead",
    "Mode",
    "PeakResident",
    "Prediction",
    "Recipe",
    "bytes_of",
    "fake_copy",
    "gpu_overhead_of",
    "inference_work",
    "largest",
    "predict_case",
    "predict_memory",
    "predict_run",
    "predict_steps",
    "record_cpu_allocations",
    "tensors_of",
    "training_work",
]
_HOMES = ("prediction", "runs", "tracker", "gpu_overhead", "cpu_allocator", "rss")


def __getattr__(name: str) -> Any:
    """Names are imported at their first use (PEP 562): the report needs a module here, but not torch,
    which takes two seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    homes = (importlib.import_module(f"{__name__}.{home}") for home in _HOMES)
    return next(getattr(home, name) for home in homes if hasattr(home, name))
