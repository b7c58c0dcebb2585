"""Work that one core does, over all cores: predictions on fake tensors are Python from end to end.

Processes are forked from a server that has loaded the libraries, as in `bench.isolated`; but one
process answers many questions, and an error ends them all."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

from bench import stage

T = TypeVar("T")
PRELOAD = ("bench.memory", "segmentation_models_pytorch")


def spread(
    work: Callable[..., T], tasks: Sequence[tuple[Any, ...]], title: str, unit: str
) -> list[T]:
    """`work(*task)` of every task, in their order, with a progress bar.

    Args:
        work: a function of a module; what it takes and gives back must survive pickling.
        title: what is done; unit: what there is one of for each task.

    Raises:
        Exception: what `work` raised, of the first task for which it did.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    jobs = min(cores or 1, len(tasks))
    bar = stage.progress(len(tasks), title, unit, silent=len(tasks) < 2)
    found: list[T] = []
    if jobs < 2:
        for task in tasks:
            found.append(work(*task))
            bar.update()
        bar.close()
        return found
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOAD))
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_one_thread) as pool:
        under_way = [pool.submit(work, *task) for task in tasks]
        try:
            for one in under_way:
                found.append(one.result())
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    bar.close()
    return found


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
