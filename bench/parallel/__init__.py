"""Work in other processes: one process a task (`run_isolated`), a pool of them (`parallel_map`), or
several that train together (`distributed`)."""

from bench.parallel.processes import Outcome, Report, host_limit_bytes, parallel_map, run_isolated

__all__ = ["Outcome", "Report", "host_limit_bytes", "parallel_map", "run_isolated"]
