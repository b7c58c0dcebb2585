"""Work that one core does, over all cores: predictions on fake tensors are Python from end to end,
and networks on small images leave a second core half idle.

Processes are forked from a server that has loaded the libraries, as in `bench.parallel.isolated`; but one
process answers many questions, and an error ends them all."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from bench import cli
from bench.errors import UserError

T = TypeVar("T")
PRELOAD = ("bench.memory", "segmentation_models_pytorch")


def parallel_map(
    work: Callable[..., T],
    tasks: Sequence[tuple[Any, ...]],
    title: str,
    unit: str,
    *,
    jobs: int | None = None,
    preload: Sequence[str] = PRELOAD,
) -> list[T]:
    """`work(*task)` of every task, in their order, with a progress bar.

    Args:
        work: a function of a module; what it takes and gives back must survive pickling. Where it
            runs in a process of its own, torch has one thread there, until `work` says otherwise.
        title: what is done; unit: what there is one of for each task.
        jobs: processes; without it, one a core. With one, all is done in the process of the caller.
        preload: modules that the processes have loaded before they start.

    Raises:
        Exception: what `work` raised, of the first task for which it did.
        UserError: the system ended a process.
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
