"""What a kill in the middle of DVC's own work leaves is mended before the next `dvc repro`."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import ROOT
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from ruamel.yaml import YAML

from bench.files import LOCK, LOCK_COPY, copy_lock, write_text
from bench.pipeline.mend import mend

FILE = """schema: '2.0'
stages:
  first:
    cmd: echo 1
    deps:
    - path: a
      hash: md5
      md5: 28288f65d16989f335b4843183e52bb1
      size: 3
    params:
      params.yaml:
        models.first: 7
    outs:
    - path: b
      hash: md5
      md5: fa0a8225d60e2684b90cb5e827d5a871
      size: 4
  second:
    cmd: echo 2
    outs:
    - path: c
      hash: md5
      md5: 420e1af054a6cc81cc82fd4eaaac0f58
      size: 5
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def said() -> str:
    return "\n".join(mend())


def test_nothing_is_said_where_nothing_is_broken() -> None:
    assert said() == ""
    LOCK.write_text(FILE)
    copy_lock()
    (LOCK_COPY.parent / "rwlock").write_text("{}")
    assert said() == ""
    assert LOCK.read_text() == FILE
    more = FILE.replace("second", "another") + FILE[FILE.index("  second") :]
    LOCK.write_text(more)  # a stage has been added since
    assert said() == ""
    assert LOCK.read_text() == more
    write_text(LOCK_COPY, more)
    LOCK.write_text(FILE.replace("first", "<<<<<<< HEAD"))  # a merge
    assert said() == ""


@pytest.mark.parametrize("length", range(0, len(FILE), 3))
def test_a_lock_file_that_is_cut_off_anywhere_is_put_back(length: int) -> None:
    """Within the last stage, after a line, it can be whole; DVC reads that."""
    LOCK.write_text(FILE)
    copy_lock()
    LOCK.write_text(FILE[:length])
    told = said()
    if told:
        assert "Restored dvc.lock, which DVC was writing when it was killed" in told
        assert f"from {LOCK_COPY}" in told
        assert LOCK.read_text() == FILE
    else:
        assert FILE.index("echo 2") < length
        left = YAML(typ="safe").load(LOCK)
        COMPILED_LOCKFILE_SCHEMA(left)
        assert left["stages"].keys() == {"first", "second"}


def test_without_a_copy_it_is_gits_and_without_git_dvc_begins_anew() -> None:
    LOCK.write_text("")
    assert "from nothing, since there is no copy" in said()
    assert not LOCK.exists()
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    LOCK.write_text(FILE)
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "a"]):
        subprocess.run([*git, *command], check=True)
    LOCK.write_text("")
    assert "from git" in said()
    assert LOCK.read_text() == FILE
    write_text(LOCK_COPY, FILE.replace("second", "another") + FILE[FILE.index("  second") :])
    assert said() == "", "of a file that was checked out again nothing is missing"
    assert LOCK.read_text() == FILE


@pytest.mark.parametrize("content", ["", '{"write": {"/a": {"pid": 1'])
def test_a_list_of_files_in_use_that_is_cut_off_is_removed(content: str) -> None:
    path = Path(".dvc/tmp/rwlock")
    write_text(path, content)
    assert said().startswith("Removed .dvc/tmp/rwlock")
    assert not path.exists()
    write_text(path, json.dumps({"write": {}}))
    assert said() == ""
    assert path.exists()


@pytest.mark.parametrize("kind", ["write", "read"])
def test_a_list_of_files_that_only_ended_processes_use_is_removed(kind: str) -> None:
    path = Path(".dvc/tmp/rwlock")

    def use(*pids: int) -> None:
        lines = [{"pid": pid, "cmd": "dvc repro"} for pid in pids]
        files = {"/a": lines} if kind == "read" else {f"/{n}": one for n, one in enumerate(lines)}
        write_text(path, json.dumps({kind: files}))

    with subprocess.Popen(["sleep", "100"]) as ended:
        use(os.getpid(), ended.pid)
        assert said() == ""
        use(ended.pid)
        assert said() == ""
        ended.kill()
        while psutil.Process(ended.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        use(os.getpid(), ended.pid)
        assert said() == ""
        use(ended.pid)
        assert said().startswith("Removed .dvc/tmp/rwlock")
        assert not path.exists()


def test_a_stage_whose_dvc_was_killed_is_ended_and_one_that_has_its_dvc_is_not() -> None:
    environment = {**os.environ, "DVC_STAGE": "train@unet", "DVC_ROOT": str(Path.cwd())}
    sleep = [sys.executable, "-c", "import time; time.sleep(100)"]
    with subprocess.Popen(sleep, env=environment) as orphan:
        Path("dvc").write_text(
            f"import os, subprocess; subprocess.run({sleep!r}, env={environment!r})\n"
        )
        with subprocess.Popen([sys.executable, "dvc"]) as parent:
            other = {**environment, "DVC_ROOT": "/another"}
            with subprocess.Popen(sleep, env=other) as foreign:
                while not psutil.Process(parent.pid).children():
                    time.sleep(0.05)
                (kept,) = psutil.Process(parent.pid).children()
                assert said() == (
                    "Ended the stage that was still running after `dvc repro` was killed (processes: 1)."
                )
                orphan.wait(10)
                assert kept.is_running()
                assert foreign.poll() is None
                foreign.kill()
                kept.kill()


def test_every_stage_keeps_a_copy(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(ROOT / "dvc.lock", LOCK)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "bench.pipeline.mend"]
    subprocess.run(command, check=True, env=environment)
    assert not LOCK_COPY.exists()
    subprocess.run(command, check=True, env=environment | {"DVC_STAGE": "any"})
    assert LOCK_COPY.read_text() == LOCK.read_text()


def test_make_repro_mends_first() -> None:
    rule = (ROOT / "Makefile").read_text().partition("\nrepro:")[2].splitlines()
    assert [line.strip() for line in rule[1:3]] == ["python -m bench.pipeline.mend", "dvc repro"]
