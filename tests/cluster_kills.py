"""Kills `glnet-bench cluster` of a tiny suite, or one of its workers, at random moments, until it has
ended with the results of `make repro`. Used by test_cluster.py; by hand:

    python tests/cluster_kills.py KILLS [SEED]
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import kills
import psutil
from conftest import ROOT

STAGES = ("download", "prepare", "weights", "training_code", "train", "evaluate")
GIT = ("git", "-c", "user.name=test", "-c", "user.email=test@localhost")


def git(folder: Path, *arguments: str) -> None:
    subprocess.run([*GIT, *arguments], cwd=folder, check=True, capture_output=True)


def project(folder: Path, stages: Collection[str] = STAGES) -> Path:
    """A clean checkout of the tiny suite with a DVC remote beside it."""
    folder.mkdir()
    kills.project(folder, stages)
    shutil.copytree(ROOT / "reference", folder / "reference")
    for name in (".gitignore", ".dvc/config", ".dvc/.gitignore"):
        shutil.copy(ROOT / name, folder / name)
    add_remote(folder)
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "tiny")
    return folder


def add_remote(folder: Path) -> None:
    """A DVC remote beside a project."""
    (folder / ".dvc/config.local").write_text(
        f"[core]\n    remote = here\n['remote \"here\"']\n    url = {folder}-remote\n"
    )


def start(
    folder: Path, *arguments: str, command: str = "cluster", **environment: str
) -> subprocess.Popen[str]:
    """`glnet-bench COMMAND` with two workers, in the environment that runs this; its output is in `log`."""
    paths = [str(Path(sys.executable).parent), os.environ["PATH"]]
    known = {**os.environ, "PATH": os.pathsep.join(paths), **environment}
    known.pop("PYTHONPATH", None)
    words = [sys.executable, "-m", "bench", command, "--workers", "2"]
    with (folder / "log").open("a") as log:
        return subprocess.Popen(
            [*words, "--folder", f"{folder}-workers", *arguments],
            cwd=folder,
            env=known,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


def tasks_below(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Processes that run a stage for a worker."""
    found = []
    try:
        for one in psutil.Process(process.pid).children(recursive=True):
            if "bench.cluster.task" in one.cmdline():
                found.append(one)
    except psutil.NoSuchProcess:  # one has just ended
        pass
    return found


def kill(
    process: subprocess.Popen[str], rng: random.Random, mean_s: float, share: float = 0
) -> str:
    """Kill a worker some seconds after its task has begun, or the head of all; what that had started
    must end too. Returns what was killed, or nothing if the head had ended.

    Args:
        share: of kills that are of the head.

    Raises:
        AssertionError: something goes on alone.
    """
    while not tasks_below(process):
        if process.poll() is not None:
            return ""
        time.sleep(0.05)
    time.sleep(rng.expovariate(1 / mean_s))
    if not (tasks := tasks_below(process)):
        return kill(process, rng, mean_s, share)
    task = rng.choice(tasks)
    try:
        whole = rng.random() < share
        victim = psutil.Process(process.pid) if whole else task.parent()
        begun = tasks if whole else [task]  # Ray's own agents notice later
        family = [one for top in begun for one in (top, *top.children(recursive=True))]
        victim.kill()
    except (psutil.NoSuchProcess, AttributeError):  # it has ended by itself
        return kill(process, rng, mean_s, share)
    if whole:
        process.wait()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive, alive
    return "head" if whole else "worker"


def survive(folder: Path, number: int, seed: int) -> Iterator[str]:
    """Kill that many times, then let it end; once it has ended, it begins anew. Yields what happened.

    Raises:
        AssertionError: results are not those of `make repro`.
    """
    rng = random.Random(seed)
    (folder / "here").mkdir()
    kills.project(folder / "here", STAGES)
    assert kills.repro(folder / "here").wait() == 0, kills.tail(folder / "here")
    expected = kills.results(folder / "here")
    done = ends = 0
    while done < number or not ends:
        head = project(folder / f"cluster{ends}")
        process = start(head)
        while True:
            said = kill(process, rng, mean_s=5, share=0.3) if done < number else ""
            done += bool(said)
            yield f"{done}: {said or 'let alone'}"
            if said != "worker":
                # With a worker lost three times it ends with status 1, and the next start goes on.
                if process.wait() == 0:
                    break
                process = start(head)
        assert kills.results(head) == expected, "results differ"
        ends += 1
        yield f"ended with all {len(expected)} results of one machine"
    yield f"{done} kills, ended {ends} times with all {len(expected)} results of one machine"


def main(number: int, seed: int = 0) -> None:
    with tempfile.TemporaryDirectory(prefix="kills") as name:
        for line in survive(Path(name), number, seed):
            print(line, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    main(*map(int, sys.argv[1:]))
