"""Repairs the state of DVC after a kill; `make repro` runs it before `dvc repro`.

DVC does not write its files atomically. A kill can leave an empty or truncated dvc.lock, which lists the
outputs of every stage, or .dvc/tmp/rwlock, which blocks every command. The running stage also
continues without DVC."""

import argparse
import json
import subprocess
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from bench import cli
from bench.files import LOCK, LOCK_COPY, write_text

TEMPORARY = Path(".dvc/tmp")
CONFLICT = "<<<<<<<"
"""Marker of an unresolved merge in git, which is left alone."""


def mend() -> Iterator[str]:
    """Repair everything; yields a sentence for each repair."""
    if ended := _end_orphans():
        yield f"Ended the stage that was still running after `dvc repro` was killed (processes: {ended})."
    if _remove_stale_rwlock():
        yield f"Removed {TEMPORARY}/rwlock of a DVC process that was killed."
    if origin := _restore_lock():
        yield (
            f"Restored {LOCK}, which DVC was writing when it was killed, from {origin}; "
            "completed stages that it does not list are found again."
        )


def _end_orphans() -> int:
    """Kill processes of stages of this project that have no parent DVC; returns their number."""
    orphans = [process for process in psutil.process_iter() if _is_orphan(process)]
    for process in orphans:
        process.kill()
    psutil.wait_procs(orphans, timeout=60)
    return len(orphans)


def _is_orphan(process: psutil.Process) -> bool:
    try:
        variables = process.environ()
        if "DVC_STAGE" not in variables or variables.get("DVC_ROOT") != str(Path.cwd()):
            return False
        parents = [Path(word).name for one in process.parents() for word in one.cmdline()]
    except psutil.Error:  # it has ended, or belongs to another user
        return False
    return "dvc" not in parents


def _remove_stale_rwlock() -> bool:
    """Remove the list of locked files if it is truncated, or all its processes have ended."""
    path = TEMPORARY / "rwlock"
    if not path.exists():
        return False
    with FileLock(f"{path}.lock", timeout=10):
        try:
            found = json.loads(path.read_text())
            users = [*found.get("write", {}).values(), *chain(*found.get("read", {}).values())]
            alive = not users or any(_is_running(int(one["pid"])) for one in users)
        except (AttributeError, KeyError, TypeError, ValueError):
            alive = False
        if not alive:
            path.unlink()
    return not alive


def _is_running(pid: int) -> bool:
    """Whether a process runs. A zombie does not: in a container, the first process may never wait for
    it, and DVC takes it for running."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _restore_lock() -> str:
    """Replace a truncated dvc.lock by the last valid copy; returns where that was, or nothing."""
    text, copy, committed = _text(LOCK), _text(LOCK_COPY), _committed()
    stages = _stages(text)
    lost = (_stages(copy) or {}).keys() - (stages or {}).keys()
    valid = stages is not None and (not lost or text == committed)
    if text is None or valid or CONFLICT in text:
        return ""
    for source, origin in ((copy, str(LOCK_COPY)), (committed, "git")):
        if source and _stages(source):
            write_text(LOCK, source)
            return origin
    LOCK.unlink()
    return "nothing, since there is no copy"


def _stages(text: str | None) -> Mapping[str, Any] | None:
    """The stages of a dvc.lock; None if it is truncated, since outputs are the last entry of a stage."""
    try:
        found = YAML(typ="safe").load(text or "")["stages"]
        for stage in found.values():
            assert stage["outs"]
            for one in (*stage.get("deps", ()), *stage["outs"]):
                assert one["path"]
                assert one["md5"]
    except (YAMLError, AssertionError, AttributeError, KeyError, TypeError):
        return None
    return dict(found) if text and text.endswith("\n") else None


def _text(path: Path) -> str | None:
    return path.read_text(errors="replace") if path.is_file() else None


def _committed() -> str | None:
    """dvc.lock of the last commit; None if there is none."""
    command = ["git", "show", f"HEAD:./{LOCK}"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def work(arguments: argparse.Namespace) -> None:
    """Repair the state of DVC after a killed `dvc repro`."""
    for sentence in mend():
        print(sentence)


if __name__ == "__main__":
    cli.main(work)
