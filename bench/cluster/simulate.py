"""How long tasks take on some workers: list scheduling, longest remaining path first."""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import replace
from graphlib import TopologicalSorter

from bench.cluster.plan import Task


def ranks(tasks: Sequence[Task], seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds of the longest path that begins with a task: who waits for long work goes first."""
    known = {task.name: task for task in tasks}
    after: dict[str, float] = dict.fromkeys(known, 0.0)
    order = TopologicalSorter({task.name: task.needs & known.keys() for task in tasks})
    found = {}
    for name in reversed(list(order.static_order())):
        found[name] = seconds[name] + after[name]
        for need in known[name].needs & known.keys():
            after[need] = max(after[need], found[name])
    return found


def makespan_s(
    tasks: Sequence[Task], seconds: Mapping[str, float], workers: int, machines: int = 1
) -> float:
    """Seconds until the last task has ended.

    Args:
        seconds: that each task takes, by name.
        workers: tasks at once, spread evenly over machines.
        machines: a task that runs alone takes all workers of one.
    """
    rank = ranks(tasks, seconds)
    left = {task.name: set(task.needs) & rank.keys() for task in tasks}
    waiting = sorted(tasks, key=lambda task: -rank[task.name])
    free = [workers // machines + (one < workers % machines) for one in range(machines)]
    whole = list(free)
    running: list[tuple[float, str, int, int]] = []
    now = 0.0
    while waiting or running:
        for task in [one for one in waiting if not left[one.name]]:
            place = max(range(machines), key=free.__getitem__)
            needed = whole[place] if task.alone else 1
            if free[place] >= needed > 0:
                free[place] -= needed
                heapq.heappush(running, (now + seconds[task.name], task.name, place, needed))
                waiting.remove(task)
        now, ended, place, taken = heapq.heappop(running)
        free[place] += taken
        for needs in left.values():
            needs.discard(ended)
    return now


def repeated(tasks: Sequence[Task], times: int) -> list[Task]:
    """The tasks of a suite with so many lines for each model and its runs, one a seed."""
    trained = {task.stage for task in tasks if task.model}
    found = [task for task in tasks if not (task.model or task.runs)]
    for number in range(times):
        found += [
            replace(
                task,
                name=f"{task.name} of {number}",
                stage=f"{task.stage} of {number}",
                needs=frozenset(f"{x} of {number}" if x in trained else x for x in task.needs),
            )
            for task in tasks
            if task.model or task.runs
        ]
    return found
