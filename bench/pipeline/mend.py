"""Mends what a kill in the middle of DVC's own work leaves; `make repro` runs it before `dvc repro`.

DVC does not write its files atomically: a kill empties or cuts off dvc.lock, which says what every
stage has made, or .dvc/tmp/rwlock, without which no command starts. And the stage that ran goes on
alone."""

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
"""Of a merge in git, which is not ours to mend."""


def mend() -> Iterator[str]:
    """Mend everything; yields a sentence for each thing that was broken."""
    if ended := _end_orphans():
        yield f"Ended the stage that a killed `dvc repro` had left running (processes: {ended})."
    if _remove_stale_rwlock():
        yield f"Removed {TEMPORARY}/rwlock, which a killed DVC had left."
    if origin := _restore_lock():
        yield (
            f"Restored {LOCK}, which DVC was writing when it was killed, from {origin}; "
            "finished work that it does not list is found again."
        )


def _end_orphans() -> int:
    """End the processes of stages of this project above which there is no DVC; returns how many."""
    found = [one for one in psutil.process_iter() if _is_orphan(one)]
    for one in found:
        one.kill()
    psutil.wait_procs(found, timeout=60)
    return len(found)


def _is_orphan(process: psutil.Process) -> bool:
    try:
        known = process.environ()
        if "DVC_STAGE" not in known or known.get("DVC_ROOT") != str(Path.cwd()):
            return False
        above = [Path(word).name for one in process.parents() for word in one.cmdline()]
    except psutil.Error:  # it has ended, or is somebody else's
        return False
    return "dvc" not in above


def _remove_stale_rwlock() -> bool:
    """Remove the list of files in use if it is cut off, or names only processes that have ended."""
    path = TEMPORARY / "rwlock"
    if not path.exists():
        return False
    with FileLock(f"{path}.lock", timeout=10):
        try:
            found = json.loads(path.read_text())
            users = [*found.get("write", {}).values(), *chain(*found.get("read", {}).values())]
            alive = not users or any(_runs(int(one["pid"])) for one in users)
        except (AttributeError, KeyError, TypeError, ValueError):
            alive = False
        if not alive:
            path.unlink()
    return not alive


def _runs(pid: int) -> bool:
    """DVC takes one that was killed for running until its parent asks for its status, which the first
    process of a container may never do."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _restore_lock() -> str:
    """Replace a dvc.lock that is cut off by the last sound one; returns where that was, or nothing."""
    text, copy, committed = _text(LOCK), _text(LOCK_COPY), _committed()
    now = _stages(text)
    lost = (_stages(copy) or {}).keys() - (now or {}).keys()
    whole = now is not None and (not lost or text == committed)
    if text is None or whole or CONFLICT in text:
        return ""
    for sound, origin in ((copy, str(LOCK_COPY)), (committed, "git")):
        if sound and _stages(sound):
            write_text(LOCK, sound)
            return origin
    LOCK.unlink()
    return "nothing, since there is no copy"


def _stages(text: str | None) -> Mapping[str, Any] | None:
    """What a dvc.lock says of each stage; None if it is cut off. The outputs of a stage are last."""
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
    """As git has it."""
    command = ["git", "show", f"HEAD:./{LOCK}"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def work(arguments: argparse.Namespace) -> None:
    """Mend what a killed `dvc repro` has left."""
    for sentence in mend():
        print(sentence)


if __name__ == "__main__":
    cli.main(work)
