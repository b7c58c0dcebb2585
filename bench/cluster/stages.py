"""The stages of a suite as tasks: DVC's outputs go through its remote, all else comes back with the task."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dvc.repo import Repo
from dvc.utils.serialize import dumps_yaml, parse_yaml_for_update

from bench import record
from bench.cluster.engines import Job
from bench.cluster.head import Head
from bench.cluster.plan import Task
from bench.config import PARAMS, Suite
from bench.errors import UserError
from bench.files import LOCK, write_bytes, write_text

SECONDS = Path(".dvc/tmp/cluster_seconds.json")
"""What tasks took, by name."""
UNKNOWN_S, RUN_S = 60.0, 20.0
"""Guesses for a stage, and for a run that is evaluated or measured."""


def remote_settings() -> dict[str, Any]:
    """The settings of the default DVC remote, with absolute paths.

    Raises:
        UserError: there is none.
    """
    config = Repo().config
    name = config["core"].get("remote")
    if name is None:
        raise UserError(
            "There is no DVC remote through which workers exchange data: `dvc remote add --default "
            "NAME URL`, where URL is a folder that all see, or s3://, ssh:// and others."
        )
    return dict(config["remote"][name])


def dvc(*arguments: str, check: bool = True) -> None:
    """Run a command of DVC; its output is ours.

    Raises:
        UserError: it failed.
    """
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], stdin=subprocess.DEVNULL)
    if check and done.returncode:
        raise UserError(f"`dvc {' '.join(arguments)}` failed here, as said above.")


class Stages(Head):
    """What the tasks of a suite have in common."""

    def __init__(self, suite: Suite, commit: str, folder: str) -> None:
        super().__init__(commit, PARAMS.read_bytes(), folder)
        self.suite = suite
        self.remote = remote_settings()
        self.before = _locked()
        self.done: set[str] = set()
        """Stages whose outputs are in the remote, and not here yet."""
        if SECONDS.exists():
            self.seconds = json.loads(SECONDS.read_text())

    def job(self, task: Task) -> Job:
        """As `Head`, with dvc.lock as it is now, and the records that the task reads."""
        read = [PARAMS, LOCK, *map(Path, task.reads)]
        paths = [path for one in read for path in (one, *one.rglob("*")) if path.is_file()]
        return super().job(task) | {
            "module": "bench.cluster.stage",
            "files": {str(path): path.read_text() for path in paths},
            "remote": self.remote,
            "stage": task.stage,
            "runs": task.runs,
            "pulls": task.pulls,
        }

    def take_over(self, task: Task, result: Mapping[str, Any]) -> None:
        """Write what DVC does not store, and the stage's entry of dvc.lock, each file atomically."""
        for path, content in result["files"].items():
            write_bytes(Path(path), content)
        if result["lock"]:
            lock = parse_yaml_for_update(LOCK.read_text(), LOCK) if LOCK.exists() else {}
            lock.setdefault("schema", "2.0")
            lock.setdefault("stages", {})[task.stage] = result["lock"]
            write_text(LOCK, dumps_yaml(lock))
            self.done.add(task.stage)
        seconds = self.seconds | {task.name: result["seconds"]}
        write_text(SECONDS, json.dumps(seconds, indent=1))

    def unchanged(self, task: Task) -> bool:
        """Whether a task need not run: what was made again before it is what it was."""
        now = _locked()
        return not task.sure and all(
            name in self.before and self.before[name]["outs"] == now[name]["outs"]
            for name in task.needs
        )

    def expected_s(self, tasks: Sequence[Task]) -> dict[str, float]:
        """As `Head`, by the last time."""
        return expected_s(self.suite, tasks, self.seconds)


def expected_s(suite: Suite, tasks: Sequence[Task], known: Mapping[str, float]) -> dict[str, float]:
    """Seconds that tasks will take: what they took, or what the last training of their model took by
    its record; of others a guess."""
    found = {}
    for task in tasks:
        path = record.path_of(suite.suite, "train", task.model)
        guess = len(task.runs) * RUN_S or UNKNOWN_S
        recorded = _trained_s(path) if task.model and path.exists() else guess
        found[task.name] = known.get(task.name, recorded)
    return found


def _trained_s(path: Path) -> float:
    """Seconds of all trainings that a record of `train` tells of."""
    values = record.read(path).values
    seeds = [values, *values.get("other_seeds", {}).values()]
    return float(sum(phase["seconds"] for one in seeds for phase in one["phases"].values()))


def _locked() -> dict[str, Any]:
    """What dvc.lock says of each stage."""
    text = LOCK.read_text() if LOCK.exists() else ""
    return dict(parse_yaml_for_update(text, LOCK).get("stages", {}))
