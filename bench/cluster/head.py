"""Runs the tasks of a plan: submits those whose inputs are there, and takes over what has ended well.
An error of one leaves the others alone."""

import hashlib
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from dvc.repo import Repo
from dvc.utils.serialize import dumps_yaml, parse_yaml_for_update

from bench import record
from bench.cluster.engines import Engine, Job
from bench.cluster.plan import Task
from bench.cluster.simulate import makespan_s, ranks
from bench.config import PARAMS, Suite
from bench.errors import UserError
from bench.files import LOCK, write_bytes, write_text

ATTEMPTS = 3
"""How often a task is tried whose worker was lost, or that failed for another reason than what only
the user can mend."""
PASSING = ("The disk is full", "Memory ran out")
"""Errors of one machine, which another one may not have."""
SECONDS = Path(".dvc/tmp/cluster_seconds.json")
"""What tasks took, by name."""
UNKNOWN_S, RUN_S = 60.0, 20.0
"""Guesses for a stage, and for a run that is evaluated or measured."""


def require_clean() -> str:
    """The commit that workers get.

    Raises:
        UserError: there is none, or files differ from it.
    """
    facts = record.provenance()
    if facts["commit"] is None or facts["dirty"] is not False:
        raise UserError(
            "Workers compute from a commit, but files differ from it here, or there is none: commit "
            "code and settings first (`git status` lists them)."
        )
    return str(facts["commit"])


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


def packed_code() -> bytes:
    """A tar file of a `.git` with the present commit alone."""
    with tempfile.TemporaryDirectory() as name:
        source = f"file://{Path.cwd()}"
        options = ("--quiet", "--depth", "1", "--no-tags", "--no-checkout")
        subprocess.run(["git", "clone", *options, source, f"{name}/code"], check=True)
        buffer = BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            archive.add(f"{name}/code/.git", ".git")
    return buffer.getvalue()


def dvc(*arguments: str, check: bool = True) -> None:
    """Run a command of DVC; its output is ours.

    Raises:
        UserError: it failed.
    """
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], stdin=subprocess.DEVNULL)
    if check and done.returncode:
        raise UserError(f"`dvc {' '.join(arguments)}` failed here, as said above.")


class Head:
    """What all tasks have in common."""

    def __init__(self, suite: Suite, commit: str, folder: str) -> None:
        """`folder`: where workers have their checkouts and their cache."""
        self.suite = suite
        self.folder = folder
        self.remote = remote_settings()
        settings = hashlib.sha256(PARAMS.read_bytes()).hexdigest()
        self.place = f"{commit[:12]}-{settings[:8]}"
        self.before = _locked()
        self.done: set[str] = set()
        """Stages whose outputs are in the remote, and not here yet."""
        self.seconds: dict[str, float] = {}
        if SECONDS.exists():
            self.seconds = json.loads(SECONDS.read_text())

    def job(self, task: Task) -> Job:
        """What a worker gets: dvc.lock as it is now, and the records that the task reads."""
        read = [PARAMS, LOCK, *map(Path, task.reads)]
        paths = [path for one in read for path in (one, *one.rglob("*")) if path.is_file()]
        return {
            "folder": self.folder,
            "place": f"{self.place}/{re.sub(r'[^a-zA-Z0-9_.@-]+', '-', task.name)}",
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
        self.seconds[task.name] = result["seconds"]
        write_text(SECONDS, json.dumps(self.seconds, indent=1))

    def unchanged(self, task: Task) -> bool:
        """Whether a task need not run: what was made again before it is what it was."""
        now = _locked()
        return not task.sure and all(
            name in self.before and self.before[name]["outs"] == now[name]["outs"]
            for name in task.needs
        )

    def run(self, tasks: Sequence[Task], engine: Engine, say: Callable[[str], None]) -> str:
        """Run all tasks.

        Returns:
            why some failed, a sentence, without which those that need them did not run; all others
            did. Empty if none failed.
        """
        expected = expected_s(self.suite, tasks, self.seconds)
        rank = ranks(tasks, expected)
        waiting = sorted(tasks, key=lambda task: -rank[task.name])
        unfinished = {task.stage for task in tasks}
        running: dict[Any, Task] = {}
        tried: Counter[str] = Counter()
        failed: dict[str, str] = {}
        try:
            while waiting or running:
                ready = [task for task in waiting if not task.needs & unfinished]
                waiting = [task for task in waiting if task not in ready]
                needless = [task for task in ready if self.unchanged(task)]
                for task in needless:
                    say(f"{task.name}: not needed, its inputs are what they were")
                    unfinished.discard(task.stage)
                if start := [task for task in ready if task not in needless]:
                    say(f"submitted: {', '.join(task.name for task in start)}")
                    handles = engine.start([(task, self.job(task)) for task in start])
                    running |= dict(zip(handles, start, strict=True))
                if not running and not needless:
                    break
                for handle in engine.ended(list(running)) if running else ():
                    task = running.pop(handle)
                    tried[task.name] += 1
                    result = _result(engine, handle)
                    where = f"{task.name} on {result['host']}" if "host" in result else task.name
                    if "lock" in result:
                        self.take_over(task, result)
                        unfinished.discard(task.stage)
                        rest = [*waiting, *running.values()]
                        left = makespan_s(rest, expected, engine.workers, engine.machines)
                        say(
                            f"{where}: done in {result['seconds']:.0f} s; {len(rest)} of "
                            f"{len(tasks)} left, about {left:.0f} s"
                        )
                    elif tried[task.name] < ATTEMPTS and not result.get("final"):
                        say(f"{where}: {result['reason']}; again")
                        waiting.insert(0, task)
                    else:
                        say(f"{where}: {result['reason']}; given up\n{result.get('log', '')}")
                        failed[task.name] = result["reason"]
        finally:
            engine.stop(list(running))
        if not failed:
            return ""
        name, reason = next(iter(failed.items()))
        return (
            f"{len(failed)} of {len(tasks)} tasks failed and {len(waiting)} wait for them, for "
            f"instance {name}: {reason}; what the others made is kept, and the next start goes on "
            "with it."
        )


def _result(engine: Engine, handle: Any) -> dict[str, Any]:
    """What a task returned; of one that failed with `reason`, and whether it is `final`."""
    try:
        result = engine.result(handle)
    except Exception as error:  # whatever the engine raises, or the worker outside of the task
        words = " ".join(str(error).split())[:200]
        return {"reason": f"its worker was lost ({type(error).__name__}: {words})"}
    if "log" in result:
        said = re.findall(r"^error: (.*)$", result["log"], re.MULTILINE)
        result["reason"] = said[-1].rstrip(".") if said else "it failed, see the end of its log"
        result["final"] = bool(said) and not said[-1].startswith(PASSING)
    return result


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
