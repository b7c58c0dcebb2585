"""Runs tasks on an engine: submits those whose inputs are there, and takes over what has ended well. An
error of one leaves the others alone."""

import hashlib
import re
import subprocess
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from bench import record
from bench.cluster.engines import Engine, Job
from bench.cluster.plan import Task
from bench.cluster.simulate import makespan_s, ranks
from bench.errors import UserError

ATTEMPTS = 3
"""How often a task is tried whose worker was lost, or that failed for another reason than what only
the user can mend."""
PASSING = ("The disk is full", "Memory ran out")
"""Errors of one machine, which another one may not have."""


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


class Head:
    """Runs tasks; what they are, a subclass says."""

    def __init__(self, commit: str, settings: bytes, folder: str) -> None:
        """
        Args:
            settings: of which each version has checkouts of its own.
            folder: where workers have their checkouts and their cache.
        """
        self.folder = folder
        self.place = f"{commit[:12]}-{hashlib.sha256(settings).hexdigest()[:8]}"
        self.seconds: dict[str, float] = {}
        """What tasks took, by name."""

    def job(self, task: Task) -> Job:
        """What a worker gets."""
        name = re.sub(r"[^a-zA-Z0-9_.@-]+", "-", task.name)
        return {"folder": self.folder, "place": f"{self.place}/{name[:100]}"}

    def take_over(self, task: Task, result: Mapping[str, Any]) -> None:
        """Keep what a task has made."""

    def unchanged(self, task: Task) -> bool:
        """Whether a task need not run after all."""
        return False

    def expected_s(self, tasks: Sequence[Task]) -> dict[str, float]:
        """Seconds that tasks will take: as long as those before."""
        known = list(self.seconds.values())
        return dict.fromkeys((task.name for task in tasks), sum(known) / max(1, len(known)))

    def run(self, tasks: Sequence[Task], engine: Engine, say: Callable[[str], None]) -> str:
        """Run all tasks.

        Returns:
            why some failed, a sentence, without which those that need them did not run; all others
            did. Empty if none failed.
        """
        rank = ranks(tasks, self.expected_s(tasks))
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
                    if "files" in result:
                        self.take_over(task, result)
                        self.seconds[task.name] = result["seconds"]
                        unfinished.discard(task.stage)
                        rest = [*waiting, *running.values()]
                        expected = self.expected_s(rest)
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
            engine.cancel(list(running))
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
