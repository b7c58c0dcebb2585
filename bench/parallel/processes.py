"""Worker processes, forked from a server that has loaded the libraries: they start within milliseconds,
without threads of torch or a CUDA context.

`run_isolated` runs one task in a fresh process and returns how it ended. `parallel_map` runs many
tasks on all cores and stops at the first error. It speeds up predictions on fake tensors, which are
pure Python, and networks on small images, which do not use a second core.

No process outlives the call that started it, not even on Ctrl-C. Each process has its own pipe: in a
shared queue, a killed process could hold the lock and block the others."""

import contextlib
import multiprocessing
import os
import re
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

import psutil

from bench import cli
from bench.errors import Status, UserError, out_of_memory

T = TypeVar("T")
PRELOAD = ("segmentation_models_pytorch",)
Report = Callable[[Mapping[str, Any]], None]
"""Reports results so far, which are kept however the process ends."""


@dataclass
class Outcome:
    """How a task ended."""

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
    kills = _oom_kills()
    process, pipe = _start(_run_task, preload, work, arguments)
    outcome = Outcome()
    deadline = time.monotonic() + limit_s
    try:
        while pipe.poll(max(0.0, deadline - time.monotonic())):
            kind, content = pipe.recv()
            if kind == "end":
                outcome.status, outcome.reason = content
                break
            outcome.reported |= content
        else:
            outcome.status, outcome.reason = "failed", f"not done within {limit_s:g} s"
            process.kill()
    except EOFError:
        process.join()
        outcome.status, outcome.reason = _end_status(process.exitcode, kills)
    except BaseException:
        process.kill()
        raise
    finally:
        process.join()
        pipe.close()
    return outcome


@contextlib.contextmanager
def threads(jobs: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads that wait for processes. An error or Ctrl-C in the block kills the processes,
    and no new task starts."""
    name = "waits for processes"
    with ThreadPoolExecutor(jobs, thread_name_prefix=name) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            while any(one.name.startswith(name) for one in threading.enumerate()):
                for process in multiprocessing.active_children():
                    process.kill()
                time.sleep(0.01)
            raise


def _start(
    target: Callable[..., None], preload: Sequence[str], *arguments: Any
) -> tuple[BaseProcess, Connection]:
    """Start a process that runs target(pipe, *arguments); returns it and the other end of its pipe."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    parent_end, child_end = context.Pipe()
    process = context.Process(target=_begin, args=(target, child_end, *arguments))
    process.start()
    child_end.close()  # the pipe then closes when the process ends
    return process, parent_end


def _begin(target: Callable[..., None], *arguments: Any) -> None:
    """Runs in the new process: ignore Ctrl-C, which the parent handles, and end with the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    target(*arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run_task(pipe: Connection, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Runs in the new process: run the task, and report its results and how it ended."""
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


def _end_status(exitcode: int | None, kills: int | None) -> tuple[Status, str]:
    """Status and reason of a process that ended without reporting a status."""
    if exitcode != -signal.SIGKILL:
        name = f"signal {-exitcode}" if exitcode and exitcode < 0 else f"exit code {exitcode}"
        return "failed", f"the process ended with {name}"
    now = _oom_kills()
    if kills is None or now is None:
        return "oom", "killed by the system, probably out of memory"
    if now > kills:
        return "oom", "killed by the system: out of memory"
    return "failed", "killed with signal 9, but not for lack of memory"


def _oom_kills() -> int | None:
    """Number of processes that the kernel's out-of-memory killer has ended; None if unknown."""
    with contextlib.suppress(OSError):
        found = re.search(r"^oom_kill (\d+)$", Path("/proc/vmstat").read_text(), re.MULTILINE)
        return int(found[1]) if found else None
    return None


def host_limit_bytes() -> int:
    """Bytes that a process can use: the machine's memory, or a lower limit of the container or process."""
    limits = [int(psutil.virtual_memory().total)]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # `max`: no limit
            limits.append(int(Path(path).read_text()))
    soft_limits = (
        resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    )
    return min(*limits, *(soft for soft in soft_limits if soft != resource.RLIM_INFINITY))


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
        title: title of the progress bar.
        unit: what a task is called in it.
        jobs: processes; None: one per core. With one, `work` runs in the calling process.
        preload: modules that the server loads before it forks.

    Raises:
        Exception: the first error of `work`; tasks that had started are completed.
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
    started = [_start(_serve, preload, work) for _ in range(jobs)]
    busy = [pipe for _, pipe in started]
    pending = iter(enumerate(tasks))
    results: dict[int, T] = {}
    failure: Exception | None = None
    try:
        for pipe in busy:
            pipe.send(next(pending))
        while busy:
            for ready in wait(busy):
                assert isinstance(ready, Connection)
                number, results[number], error = ready.recv()
                failure = failure or error
                bar.update()
                if not failure and (following := next(pending, None)):
                    ready.send(following)
                else:
                    busy.remove(ready)
    except (EOFError, ConnectionError):
        raise UserError(
            f"A process of `{title}` was killed, probably out of memory: use fewer than {jobs} processes "
            "at once. Results that were written are kept."
        ) from None
    finally:
        for process, pipe in started:
            if busy:
                process.kill()
            pipe.close()  # the process ends
            process.join()
    bar.close()
    if failure:
        raise failure
    return [results[number] for number in range(len(tasks))]


def _serve(pipe: Connection, work: Callable[..., Any]) -> None:
    """Runs in the new process: run one task after another until the pipe is closed."""
    os.environ["OMP_NUM_THREADS"] = "1"  # for a torch that is not loaded yet
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    with contextlib.suppress(EOFError):
        while True:
            number, task = pipe.recv()
            result = error = None
            try:
                result = work(*task)
            except Exception as found:
                found.add_note(f"In another process:\n{traceback.format_exc()}")
                error = found
            pipe.send((number, result, error))


def _cores() -> int:
    here = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if here else os.cpu_count() or 1
