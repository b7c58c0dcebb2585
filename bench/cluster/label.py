"""`glnet-bench predict --cluster`: images, or bands of one, as tasks. The images, the checkpoint and the
folder of the labels are where all workers see them."""

import argparse
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from bench import cli
from bench.cluster import engines
from bench.cluster.head import Head, require_clean
from bench.cluster.plan import Task
from bench.cluster.start import open_engine
from bench.config import PARAMS, read_suite
from bench.errors import UserError
from bench.streaming import Job, Spread, label_band, open_job, predict_file


class Labels(Head):
    """Tasks that label a file, or a band of one."""

    common: engines.Job
    """What all jobs have."""
    own: Mapping[str, engines.Job]
    """What a task's job has, by its name."""

    def job(self, task: Task) -> engines.Job:
        """As `Head`."""
        return {**super().job(task), **self.common, **self.own[task.name]}

    def label(self, own: Mapping[str, engines.Job], engine: engines.Engine) -> None:
        """Run one task for each; raises a `UserError` if any failed."""
        self.own = own
        tasks = [Task(name, name) for name in own]
        if failure := self.run(tasks, engine, lambda line: print(line, flush=True)):
            raise UserError(failure)


def label(
    arguments: argparse.Namespace,
    job: Job,
    outputs: Mapping[Path, Path],
    options: Mapping[str, Any],
) -> None:
    """Label several images, each by one worker, or the bands of one.

    Args:
        arguments: of `glnet-bench predict`.
        outputs: label files by image.
        options: of `predict_file`.

    Raises:
        UserError: the checkout is dirty, the strategy has no bands, or a task failed.
    """
    suite = read_suite(arguments.suite)
    files = {str(PARAMS): arguments.suite.read_text()}
    if arguments.classes is None:
        about = job.run.dataset.root / "dataset.json"
        files[str(about)] = about.read_text()
    weights = job.weights if isinstance(job.weights, int) else str(job.weights.resolve())
    opened = {"run": job.run.name, "weights": weights, "classes": arguments.classes}
    common = {
        "module": __name__,
        "files": files,
        "environment": cli.instruction_limits(arguments.suite),
        "open": {**opened, "settings": arguments.settings},
        "options": dict(options),
    }
    head = Labels(require_clean(), f"{common} {outputs}".encode(), arguments.folder)
    head.common = common
    with closing(open_engine(arguments, suite, head.place)) as engine:
        if len(arguments.images) > 1:
            numbered = enumerate(outputs.items(), 1)
            head.label(
                {f"{n} {image.name}": _places(image, output) for n, (image, output) in numbered},
                engine,
            )
            return
        ((image, output),) = outputs.items()

        def bands(job: Job, step: str, missing: Sequence[tuple[int, int]]) -> None:
            patches = getattr(job.run.spec, "sub_batch", None)  # what fits the memory
            settings = arguments.settings | ({"sub_batch": patches} if patches else {})
            own = {**_places(image, output), "open": opened | {"settings": settings}, "step": step}
            head.label(
                {f"{step} {rows[0] + 1} to {rows[1]}": {**own, "rows": rows} for rows in missing},
                engine,
            )

        predict_file(image, output, job, **options, spread=Spread(engine.workers, bands))


def _places(image: Path, output: Path) -> dict[str, str]:
    return {"image": str(image.resolve()), "output": str(output.resolve())}


def work(job: Mapping[str, Any]) -> dict[str, Any]:
    """At a worker: label a file, or a band of one. There is nothing to send back."""
    opened = dict(job["open"])
    if isinstance(opened["weights"], str):
        opened["weights"] = Path(opened["weights"])
    selected = open_job(**opened)
    if "rows" in job:
        first, end = job["rows"]
        label_band(Path(job["output"]), selected, job["step"], (first, end))
    else:
        predict_file(Path(job["image"]), Path(job["output"]), selected, **job["options"])
    return {}
