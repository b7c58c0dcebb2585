"""Worker processes: one per task (`run_isolated`, several at once in `threads`), one per core
(`parallel_map`), or distributed training (`distributed`)."""

from bench.parallel.processes import (
    Outcome,
    Report,
    host_limit_bytes,
    parallel_map,
    run_isolated,
    threads,
)

__all__ = ["Outcome", "Report", "host_limit_bytes", "parallel_map", "run_isolated", "threads"]
