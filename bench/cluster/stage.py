"""At a worker: pulls the inputs of a stage, runs its own command, pushes its outputs to the DVC remote."""

import shlex
import subprocess
import time
from pathlib import Path
from typing import Any

from dvc.config import Config
from dvc.repo import Repo
from ruamel.yaml import YAML

from bench.files import CACHE_STATE, LOCK


def _configure(job: dict[str, Any]) -> None:
    """Use the head's remote, and one cache for all checkouts of this machine."""
    with Config.from_cwd().edit("local") as config:
        config["core"] = {"remote": "cluster"}
        config["remote"] = {"cluster": job["remote"]}
        shared = Path(job["folder"]).expanduser().resolve() / "cache"
        config["cache"] = {"dir": str(shared), "type": ["reflink", "hardlink", "symlink", "copy"]}


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Run a stage, or some runs of a stage for all runs; returns what `worker.perform` passes on."""
    _configure(job)
    repo = Repo()
    if job["pulls"]:
        repo.pull(job["pulls"])
    (stage,) = repo.stage.collect(job["stage"])
    outs = [Path(out.def_path) for out in stage.outs]
    begun = time.monotonic()
    if job["runs"]:
        subprocess.run([*shlex.split(stage.cmd), *job["runs"]], check=True)
        seconds, lock = time.monotonic() - begun, None
        files = [one for out in outs for run in job["runs"] for one in _of_run(out, run)]
    else:
        # The run cache would offer what ended in another checkout here without its small records.
        repo.reproduce(job["stage"], single_item=True, run_cache=False)
        seconds = time.monotonic() - begun
        repo.push(job["stage"])
        lock = YAML(typ="safe").load(LOCK)["stages"][job["stage"]]
        files = [
            one for out in stage.outs if not out.use_cache for one in _below(Path(out.def_path))
        ]
    return {"command_s": seconds, "lock": lock, "files": [str(path) for path in files]}


def _of_run(out: Path, run: str) -> list[Path]:
    """The files of one run in an output that has those of all: its record, its folder, and the mark
    by which `--missing` knows at the head that the record is up to date."""
    own = (out / f"{run}.json", CACHE_STATE.joinpath(*out.parts[1:], run))
    return [*(path for path in own if path.is_file()), *_below(out / run)]


def _below(path: Path) -> list[Path]:
    return [one for one in sorted([path, *path.rglob("*")]) if one.is_file()]
