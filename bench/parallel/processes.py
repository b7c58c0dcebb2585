"""Work in other processes, forked from a server that has loaded the libraries: they start within
milliseconds, without threads of torch or a CUDA context.

`run_isolated` runs one task in a fresh process and returns how it ended. `parallel_map` runs many
tasks on all cores and stops at the first error. It speeds up predictions on fake tensors, which are
pure Python, and networks on small images, which do not keep a second core busy."""

import contextlib
import multiprocessing
import os
import re
import resource
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import psutil

from bench import cli
from bench.errors import UserError, out_of_memory
from bench.record import Status

T = TypeVar("T")
PRELOAD = ("segmentation_models_pytorch",)
Report = Callable[[Mapping[str, Any]], None]
"""Reports results so far; they are kept, however the process ends."""


@dataclass
class Outcome:
    """How the work ended."""

    status: Status = "ok"
    reason: str | None = None
    """Why it is not `ok`."""
    reported: dict[str, Any] = field(default_factory=dict)


def run_isolated(
    work: Callable[..., None],
    *arguments: Any,
    limit_s: float,
    preload: Sequence[str] = (),
) -> Outcome:
    """Call work(report, *arguments) in a fresh process; its errors are returned, not raised.

    The status is `oom` if memory ran out: the GPU's, a limit of the process, or the system's, whose
    out-of-memory killer leaves no message; `failed` for any other error, the time limit included.

    Args:
        work: a module-level function; what it reports must be picklable.
        limit_s: seconds after which the process is killed.
        preload: modules that the server loads before it forks; only the first call's are used.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(there, work, arguments))
    kills = _kills()
    process.start()
    there.close()
    outcome = Outcome()
    end = time.monotonic() + limit_s
    try:
        while here.poll(max(0.0, end - time.monotonic())):
            kind, content = here.recv()
            if kind == "end":
                outcome.status, outcome.reason = content
                break
            outcome.reported |= content
        else:
            outcome.status, outcome.reason = "failed", f"not done within {limit_s:g} s"
            process.kill()
    except EOFError:
        process.join()
        outcome.status, outcome.reason = _end(process.exitcode, kills)
    finally:
        process.join()
        here.close()
    return outcome


def _work(pipe: Connection, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """In the new process."""
    status: Status = "ok"
    reason = None
    try:
        work(lambda content: pipe.send(("reported", dict(content))), *arguments)
    except UserError as error:
        status, reason = "failed", str(error)
    except Exception as error:
        status = "oom" if out_of_memory(error) else "failed"
        reason = f"{type(error).__name__}: {error}".split("\n", 1)[0]
    pipe.send(("end", (status, reason)))


def _end(exitcode: int | None, kills: int | None) -> tuple[Status, str]:
    """Status and reason of a process that ended without reporting them."""
    if exitcode != -signal.SIGKILL:
        name = f"signal {-exitcode}" if exitcode and exitcode < 0 else f"exit code {exitcode}"
        return "failed", f"the process ended with {name}"
    now = _kills()
    if kills is None or now is None:
        return "oom", "killed by the system, most likely for memory"
    if now > kills:
        return "oom", "killed by the system for memory"
    return "failed", "killed with signal 9, but not by the system for memory"


def _kills() -> int | None:
    """Number of processes that the kernel has killed for memory so far; None if not known."""
    with contextlib.suppress(OSError):
        found = re.search(r"^oom_kill (\d+)$", Path("/proc/vmstat").read_text(), re.MULTILINE)
        return int(found[1]) if found else None
    return None


def host_limit_bytes() -> int:
    """Bytes that a process can use here: the machine's memory, or less if a limit is set."""
    limits = [int(psutil.virtual_memory().total)]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # `max`: no limit
            limits.append(int(Path(path).read_text()))
    softs = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    return min(*limits, *(soft for soft in softs if soft != resource.RLIM_INFINITY))


def parallel_map(
    work: Callable[..., T],
    tasks: Sequence[tuple[Any, ...]],
    title: str,
    unit: str,
    *,
    jobs: int | None = None,
    preload: Sequence[str] = PRELOAD,
) -> list[T]:
    """`work(*task)` of every task, in order, with a progress bar.

    Args:
        work: a module-level function with picklable arguments and results. In another process torch
            has one thread, unless `work` changes that.
        title: the progress bar's title; unit: its unit, one per task.
        jobs: processes; None: one per core. With one, `work` runs in the calling process.
        preload: modules that the server loads before it forks.

    Raises:
        Exception: what `work` raised, for the first task that failed.
        UserError: the system killed a process.
    """
    jobs = min(jobs or _cores(), len(tasks))
    bar = cli.progress(len(tasks), title, unit, silent=len(tasks) < 2)
    found: list[T] = []
    if jobs < 2:
        for task in tasks:
            found.append(work(*task))
            bar.update()
        bar.close()
        return found
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_one_thread) as pool:
        under_way = [pool.submit(work, *task) for task in tasks]
        try:
            for one in under_way:
                found.append(one.result())
                bar.update()
        except BrokenProcessPool:
            raise UserError(
                f"A process of `{title}` was killed, most likely for memory: {jobs} are too many "
                "at once here. What was written before is kept."
            ) from None
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    bar.close()
    return found


def _cores() -> int:
    here = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if here else os.cpu_count() or 1


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
