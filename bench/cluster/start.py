"""The whole of `glnet-bench cluster`."""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import cache
from pathlib import Path

from bench import record
from bench.cluster import engines
from bench.cluster.head import packed_code, require_clean
from bench.cluster.plan import Task, first_stages, open_graph, steps_of, tasks_of
from bench.cluster.simulate import makespan_s, ranks, repeated
from bench.cluster.stages import RUN_S, SECONDS, UNKNOWN_S, Stages, dvc, expected_s
from bench.config import Suite, read_suite
from bench.errors import UserError

SLURM_JOBS = 8
"""At once, where the command line does not say."""
WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
DEFINITION = (
    "by list scheduling on DVC's graph, longest remaining path first: seconds until the last task has "
    "ended, and the share of the workers' time in which they work; trainings take the seconds of "
    f"their records, other stages {UNKNOWN_S:g} s, and a run evaluated or measured {RUN_S:g} s; "
    "longest_s: the path through the graph that takes longest"
)


def start(arguments: argparse.Namespace) -> None:
    """Run the first stages here, all tasks on workers, and then what is left here."""
    suite = read_suite()
    if arguments.simulate:
        print(f"{_simulate(suite, arguments.simulate)}: times and shares are in this record")
        return
    head = Stages(suite, require_clean(), arguments.folder)
    if arguments.dry_run:
        workers = _workers(arguments, suite)
        _show(arguments, suite, tasks_of(suite, workers, workers if arguments.slurm else 1))
        return
    engine = open_engine(arguments, suite)
    subprocess.run([sys.executable, "-m", "bench.pipeline.mend"], check=True)
    if SECONDS.exists():  # of an earlier start, which may have been interrupted
        dvc("pull", "--quiet", "--allow-missing", check=False)
    dvc("repro", *first_stages())
    tasks = tasks_of(suite, engine.workers, engine.machines)
    _for_each("push", {name for task in tasks for name in task.pulls} - {*map(_made, tasks)})
    with closing(engine):
        failure = head.run(tasks, engine, lambda line: print(line, flush=True))
    _for_each("pull", head.done)
    if failure:
        raise UserError(failure)
    dvc("repro")


def _made(task: Task) -> str:
    """The stage whose outputs the task certainly makes."""
    return task.stage if task.sure else ""


def _for_each(command: str, stages: set[str]) -> None:
    """Push or pull the outputs of some stages; without any, DVC would take all."""
    if stages:
        dvc(command, *sorted(stages))


def _simulate(suite: Suite, seeds: int) -> Path:
    """Write how long all tasks of a suite, each model once a seed, take on so many workers, each of
    them a machine."""
    rows = []
    for workers in WORKERS:
        once = tasks_of(
            suite, workers, workers, lambda: set(open_graph()[0]), lambda _: [*suite.runs]
        )
        tasks = repeated(once, seeds)
        seconds = expected_s(suite, tasks, {})
        took_s = makespan_s(tasks, seconds, workers, workers)
        share = sum(seconds.values()) / took_s / workers
        rows.append({"workers": workers, "seconds": took_s, "efficiency": share})
        print(f"{workers:5} workers: {took_s:8.0f} s, {share:4.0%} of them at work")
    path = record.RESULTS / f"cluster/{suite.suite}.json"
    trainings = sum(bool(task.model) for task in tasks)
    values = {
        "trainings": trainings,
        "longest_s": max(ranks(tasks, seconds).values()),
        "rows": rows,
        "definition": DEFINITION,
    }
    settings = {"seeds": seeds, "models": sorted(suite.models)}
    record.write(path, record.Record("cluster", suite.suite, settings, values, record.provenance()))
    return path


def _workers(arguments: argparse.Namespace, suite: Suite) -> int:
    """Tasks at once."""
    here = max(1, (os.cpu_count() or 1) // suite.compute.threads)
    return int(arguments.workers or (SLURM_JOBS if arguments.slurm else here))


def open_engine(arguments: argparse.Namespace, suite: Suite, work: str = "") -> engines.Engine:
    """The service that arguments of the command line choose.

    Args:
        work: as for `engines.Slurm`.

    Raises:
        UserError: it is not there.
    """
    workers = _workers(arguments, suite)
    if arguments.slurm:
        slurm = _slurm(arguments, suite, workers, work)
        slurm.begin()
        return slurm
    share = _share(suite, arguments.gpu) if arguments.gpu else lambda _: 1.0
    return engines.Ray(
        arguments.address,
        workers,
        packed_code(),
        suite.compute.threads,
        suite.compute.device != "cpu",
        share,
    )


def _slurm(
    arguments: argparse.Namespace, suite: Suite, workers: int, work: str = ""
) -> engines.Slurm:
    gpus = {"gpus_per_node": 1} if suite.compute.device == "cuda" else {}
    options = gpus | dict(arguments.sbatch)
    return engines.Slurm(workers, packed_code(), suite.compute.threads, options, work)


def _show(arguments: argparse.Namespace, suite: Suite, tasks: Sequence[Task]) -> None:
    """Print the tasks in steps, those of one step at once; of Slurm their scripts."""
    slurm = _slurm(arguments, suite, _workers(arguments, suite)) if arguments.slurm else None
    for step in steps_of(tasks):
        for line in slurm.scripts(step) if slurm else [", ".join(task.name for task in step)]:
            print(line)


def _share(suite: Suite, card_bytes: int) -> Callable[[str], float]:
    """The share of a card that the training of a model needs, by predicted memory; all of it while
    its data set is not prepared here."""

    @cache
    def share(name: str) -> float:
        from bench.memory import predict_steps
        from bench.run import open_model

        model = open_model(suite, name)
        try:
            image, _ = model.dataset.read(model.dataset.ids("train")[0])
        except UserError:
            return 1.0
        batch = {phase: one.batch for phase, one in model.config.training.phases.items()}
        found = predict_steps(model, (image.shape[-2], image.shape[-1]), batch, "cuda")
        needed = max((one.process_bytes() for one in found.values()), default=card_bytes)
        return min(1.0, needed / card_bytes)

    return share
