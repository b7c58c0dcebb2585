"""Work in other processes, forked from a server that has loaded the libraries: they start within
milliseconds, without threads of torch or a CUDA context.

`run_isolated` runs one task in a fresh process and returns how it ended. `parallel_map` runs many
tasks on all cores and stops at the first error. It speeds up predictions on fake tensors, which are
pure Python, and networks on small images, which do not keep a second core busy.

No process outlives the call that started it, on Ctrl-C either. Each talks through a pipe of its own:
in a queue that all share, one that is killed can hold the lock, and the others wait for ever."""

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
    kills = _kills()
    process, here = _start(_work, preload, work, arguments)
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
    except BaseException:
        process.kill()
        raise
    finally:
        process.join()
        here.close()
    return outcome


@contextlib.contextmanager
def threads(jobs: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that each wait for other processes. An error or Ctrl-C in the block ends these at once,
    and nothing new begins."""
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
    """A process that runs target(pipe, *arguments), and our end of its pipe."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    here, there = context.Pipe()
    process = context.Process(target=_begin, args=(target, there, *arguments))
    process.start()
    there.close()  # so that its end is the end of the pipe
    return process, here


def _begin(target: Callable[..., None], *arguments: Any) -> None:
    """In the new process: Ctrl-C is for the one that started it, without which it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    target(*arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


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
        Exception: what `work` raised first; tasks that had begun are done.
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
    left = iter(enumerate(tasks))
    results: dict[int, T] = {}
    failure: Exception | None = None
    try:
        for pipe in busy:
            pipe.send(next(left))
        while busy:
            for ready in wait(busy):
                assert isinstance(ready, Connection)
                number, results[number], error = ready.recv()
                failure = failure or error
                bar.update()
                if not failure and (following := next(left, None)):
                    ready.send(following)
                else:
                    busy.remove(ready)
    except (EOFError, ConnectionError):
        raise UserError(
            f"A process of `{title}` was killed, most likely for memory: {jobs} are too many "
            "at once here. What was written before is kept."
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
    """In the new process: one task after another, until the pipe is closed."""
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
