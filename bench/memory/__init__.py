"""Peak memory: predicted without a device, and measured by several meters.

Records keep each meter's definition beside its number.

tracker.py             live tensors, by operator, module and category
prediction.py          the same on fake tensors, plus the temporaries that the rules add
replay.py              replays repeated calls, so that 1000 patches take no longer than one
rules_cpu.py           temporaries inside operators, on the CPU
rules_cuda.py          the same on CUDA
cuda_allocator.py      simulation of CUDA's caching allocator
gpu_overhead.py        memory beside the tensors: CUDA context and workspaces
meters.py              all meters of one run, with their definitions
cpu_allocator.py       allocations that torch's CPU allocator reports: `allocated` on the CPU
nvml.py                GPU memory that NVML reports
rss.py                 resident memory of this process
published_settings.py  the UHR methods at the settings for which papers print memory
paper_memory.py        one model of all memory figures in the GLNet paper
"""

from bench.memory.cpu_allocator import record_cpu_allocations
from bench.memory.gpu_overhead import blas_bytes, gpu_overhead_of, has_tf32
from bench.memory.meters import (
    DEFINITIONS,
    allocated_bytes_of,
    expected_allocated_bytes,
    measure_first_on_gpu,
    measure_run,
)
from bench.memory.nvml import NvmlSampler, gpu_bytes
from bench.memory.prediction import (
    LEARNING_RATE,
    STEPS,
    Case,
    Prediction,
    Trace,
    predict_case,
    predict_memory,
    predict_training,
    timeline,
    trace_memory,
    trace_training,
    views_of,
)
from bench.memory.rss import PeakResident
from bench.memory.tracker import Tracker, bytes_of, tensors_of

__all__ = [
    "DEFINITIONS",
    "LEARNING_RATE",
    "STEPS",
    "Case",
    "NvmlSampler",
    "PeakResident",
    "Prediction",
    "Trace",
    "Tracker",
    "allocated_bytes_of",
    "blas_bytes",
    "bytes_of",
    "expected_allocated_bytes",
    "gpu_bytes",
    "gpu_overhead_of",
    "has_tf32",
    "measure_first_on_gpu",
    "measure_run",
    "predict_case",
    "predict_memory",
    "predict_training",
    "record_cpu_allocations",
    "tensors_of",
    "timeline",
    "trace_memory",
    "trace_training",
    "views_of",
]
