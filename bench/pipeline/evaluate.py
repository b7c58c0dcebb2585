"""Stage `evaluate`: the table `runs` -> of each line a confusion matrix a scene, and the predicted
labels."""

import argparse
from dataclasses import replace
from pathlib import Path

from bench import cli, record
from bench.config import Suite, read_suite
from bench.parallel.parallel_map import parallel_map
from bench.pipeline import cache

PRELOAD = ("bench.pipeline.evaluation", "segmentation_models_pytorch")


def evaluate_all(suite: Suite, names: list[str]) -> list[Path]:
    """Evaluate several runs, as many at once as the suite says, and write their records."""
    jobs = min(suite.compute.jobs, len(names))
    # Suites begin with what is simple: what takes long shall not be left to the end.
    return parallel_map(
        _evaluate,
        [(suite, name, jobs) for name in reversed(names)],
        "evaluate",
        "run",
        jobs=jobs,
        preload=PRELOAD,
    )


def _evaluate(suite: Suite, name: str, jobs: int) -> Path:
    from bench.pipeline.evaluation import evaluate

    path = record.path_of(suite.suite, "evaluate", name)
    share = replace(suite, compute=suite.compute.shared(jobs))
    record.write(path, evaluate(share, name, silent=jobs > 1))
    cache.mark_fresh(suite, "evaluate", name)
    return path


def work(arguments: argparse.Namespace) -> None:
    """Evaluate runs of params.yaml on their splits; all of them if none is named."""
    suite = read_suite()
    for path in evaluate_all(suite, cache.requested(suite, "evaluate", arguments)):
        print(path)


if __name__ == "__main__":
    cli.main(work, cache.arguments)
