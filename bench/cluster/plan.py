"""What has to run, from DVC's own graph of stages.

Stages that depend on no other one fetch from the internet or take a moment: they run at the head. So do
those that go on from what lies there (outputs with `persist`) and what is made of these: `evaluate`,
`measure` and `report`. Of the two, workers compute the runs before, so that the stages find every
record up to date. All other stages are tasks of workers."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from dvc.repo import Repo

from bench.config import CHECKPOINTS, Suite

MISSING = " --missing"
"""How a command ends that computes the runs without an up-to-date record; some, if they are named."""


@dataclass(frozen=True)
class Task:
    """A stage, or some runs of a stage for all runs."""

    name: str
    stage: str
    needs: frozenset[str] = frozenset()
    """Stages that make its inputs."""
    pulls: tuple[str, ...] = ()
    """Of these, the stages with outputs that DVC stores."""
    reads: tuple[str, ...] = ()
    """Outputs of these that it does not store: records, which travel with the task."""
    runs: tuple[str, ...] = ()
    model: str = ""
    """The model that it trains, by which its memory on a GPU is predicted."""
    alone: bool = False
    """Whether it measures the machine, and so shares it with no other task."""
    sure: bool = True
    """False if it has to run only if another task gives new outputs."""


@cache
def open_graph() -> tuple[dict[str, Any], dict[str, set[str]]]:
    """DVC's stages by name, those first that others need; and of each the stages that it needs."""
    index = Repo().index
    needs = {
        stage.addressing: {one.addressing for one in index.graph.successors(stage)}
        for stage in index.stages
    }
    stages = {stage.addressing: stage for stage in index.stages}
    return {name: stages[name] for name in TopologicalSorter(needs).static_order()}, needs


def first_stages() -> list[str]:
    """The stages that depend on no other one."""
    stages, needs = open_graph()
    return [name for name in stages if not needs[name]]


def missing_runs(stage: str) -> list[str]:
    """The runs that the stage `evaluate` or `measure` would compute now."""
    command = [sys.executable, "-m", "bench.pipeline.cache", stage]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def tasks_of(
    suite: Suite,
    workers: int,
    machines: int,
    changed: Callable[[], set[str]] = lambda: set(Repo().status()),
    missing: Callable[[str], list[str]] = missing_runs,
) -> list[Task]:
    """The tasks that workers have to do, in an order in which one machine could do them.

    Args:
        workers: tasks at once; runs are evaluated in so many groups at most, since each loads the
            libraries.
        machines: groups in which they are measured at most.
        changed: names of the stages that DVC would run now.
        missing: names of the runs of a stage that it would compute.
    """
    stages, needs = open_graph()
    changed_now = changed()
    stale: set[str] = set()
    at_head: set[str] = set()
    tasks: list[Task] = []
    makers = {out.def_path: name for name, stage in stages.items() for out in stage.outs}
    for name, stage in stages.items():
        if name in changed_now or needs[name] & stale:
            stale.add(name)
        if not needs[name]:
            continue
        alone = any(_has(suite.machine, out.def_path) for out in stage.outs)
        task = partial(Task, stage=name, alone=alone)
        if needs[name] & at_head or any(out.persist for out in stage.outs):
            at_head.add(name)
            if name in stale and stage.cmd.endswith(MISSING):
                trained = {run: makers[_checkpoint(one.model)] for run, one in suite.runs.items()}
                known = set(missing(name))
                runs = [run for run in suite.runs if run in known or trained[run] in stale]
                most = machines if alone else min(workers, len(runs) // suite.compute.jobs)
                groups = _groups(runs, most)
                for number, group in enumerate(groups, 1):
                    made = {trained[run] for run in group}
                    inputs = made.union(*(needs[one] for one in made))
                    title = f"{name} {number}/{len(groups)}"
                    tasks.append(task(title, runs=group, **_inputs(stages, inputs)))
        elif name in stale:
            model = next((one for one in suite.models if makers[_checkpoint(one)] == name), "")
            own_inputs = _inputs(stages, needs[name])
            tasks.append(task(name, sure=name in changed_now, model=model, **own_inputs))
    return tasks


def steps_of(tasks: Sequence[Task]) -> Iterator[list[Task]]:
    """Tasks that can run at once, if each step waits for the one before it."""
    left = list(tasks)
    while left:
        unfinished = {task.stage for task in left}
        step = [task for task in left if not task.needs & unfinished]
        left = [task for task in left if task not in step]
        yield step


def _checkpoint(model: str) -> str:
    """The output of the stage that trains a model."""
    return str(CHECKPOINTS / f"{model}.pt")


def _has(machine: str, out: str) -> bool:
    """Whether an output below results/SUITE is named after the machine, as measurements are."""
    top, *parts = Path(out).parts
    return top == "results" and machine in {part.removesuffix(".json") for part in parts[1:]}


def _groups(runs: Sequence[str], most: int) -> list[tuple[str, ...]]:
    """At most so many groups; none has fewer than `compute.jobs` runs if that is asked of `most`, so
    that each run gets the share of the threads which the stage would give it."""
    count = max(1, min(most, len(runs)))
    return [group for one in range(count) if (group := tuple(runs[one::count]))]


def _inputs(stages: dict[str, Any], needs: set[str]) -> dict[str, Any]:
    """How a task gets the outputs of some stages."""
    ordered = [name for name in stages if name in needs]
    outs = {name: stages[name].outs for name in ordered}
    return {
        "needs": frozenset(needs),
        "pulls": tuple(name for name in ordered if any(out.use_cache for out in outs[name])),
        "reads": tuple(out.def_path for name in ordered for out in outs[name] if not out.use_cache),
    }
