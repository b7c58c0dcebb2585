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
