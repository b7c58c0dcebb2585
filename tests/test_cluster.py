"""The suite on Ray and on Slurm, with real clusters on this machine; and what a cluster would take."""

import copy
import json
import os
import random
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kills
import numpy as np
import pytest
import rasterio
from cluster_kills import STAGES, git, kill, start
from cluster_kills import project as checkout
from conftest import ROOT, scene
from PIL import Image
from test_large_files import read

from bench.cluster import engines, head, stages, worker
from bench.cluster import start as start_module
from bench.cluster.plan import Task, _has, steps_of
from bench.cluster.simulate import makespan_s, repeated
from bench.config import read_suite
from bench.errors import UserError

SLURM = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(name)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ray_gives_the_results_of_one_machine_though_a_worker_is_killed(tmp_path: Path) -> None:
    here, cluster = tmp_path / "here", checkout(tmp_path / "cluster")
    here.mkdir()
    kills.project(here, STAGES)
    alone = kills.repro(here)
    process = start(cluster)
    assert kill(process, random.Random(0), mean_s=1) == "worker"
    assert process.wait() == 0, kills.tail(cluster)
    assert alone.wait() == 0, kills.tail(here)
    expected = kills.results(here)
    assert len(expected) > 10
    assert kills.results(cluster) == expected
    said = (cluster / "log").read_text()
    assert "its worker was lost" in said
    assert re.search(r"train@glnet on \S+: done in \d+ s; \d of 4 left, about \d+ s", said)
    again = kills.repro(cluster)
    (cluster / "log").write_text("")
    assert again.wait() == 0
    assert "Running stage" not in kills.tail(cluster)
    # Records are of the commit that the head has, and nobody has changed it.
    record = json.loads((cluster / "results/tiny/train/glnet.json").read_text())
    assert record["provenance"]["dirty"] is False


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_images_on_ray_have_the_labels_of_one_process_though_a_worker_is_killed(
    tmp_path: Path,
) -> None:
    folder = checkout(tmp_path / "cluster")
    images = [tmp_path / f"{name}.png" for name in "abc"]
    for number, image in enumerate(images):
        Image.fromarray(scene(number, (700, 400) if number == 0 else (90, 70))[0]).save(image)
    random_weights = ("--random", "0", "--classes", "3")
    one = (str(images[0]), "--run", "glnet", *random_weights)
    # A strategy that needs the whole image: an image is a task.
    several = (*map(str, images[1:]), "--run", "colour", *random_weights)
    for where in ("alone", "workers"):
        (tmp_path / where).mkdir()

    def predict(*arguments: str) -> subprocess.Popen[str]:
        return start(folder, *arguments, command="predict")

    assert predict(*one, "-o", "../alone/a.tif").wait() == 0, kills.tail(folder)
    assert predict(*several, "-o", "../alone").wait() == 0, kills.tail(folder)
    process = predict(*one, "-o", "../workers/a.tif", "--cluster", "--cog")
    assert kill(process, random.Random(0), mean_s=1) == "worker"
    assert process.wait() == 0, kills.tail(folder)
    said = (folder / "log").read_text()
    assert "its worker was lost" in said
    assert re.search(r"labels \d+ to \d+ on \S+: done in", said)
    assert predict(*several, "-o", "../workers", "--cluster").wait() == 0, kills.tail(folder)
    for name in ("a.tif", "b.tif", "c.tif"):
        assert np.array_equal(read(tmp_path / "alone" / name), read(tmp_path / "workers" / name))
    assert len(list((tmp_path / "workers").iterdir())) == 3
    with rasterio.open(tmp_path / "workers/a.tif") as file:
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[str]:
    """A Slurm of one node; the file that SLURM_CONF names."""
    script = ROOT / "tests/slurm.sh"
    folder = tmp_path / "slurm"
    folder.mkdir()
    done = subprocess.run([script, "start", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    yield done.stdout.strip()
    subprocess.run([script, "stop", folder], check=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(bool(SLURM), reason=f"Debian's packages of Slurm are not installed: {SLURM}")
@pytest.mark.skipif(os.getuid() != 0, reason="only root can start slurmd")
def test_slurm_runs_the_suite(tmp_path: Path, slurm: str) -> None:
    folder = checkout(tmp_path / "cluster")
    process = start(folder, "--slurm", "--sbatch", "time=10", SLURM_CONF=slurm)
    assert process.wait() == 0, kills.tail(folder)
    assert len([path for path in kills.results(folder) if "evaluate" in path]) == 2


def test_sbatch_scripts_ask_for_what_tasks_need(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    slurm = engines.Slurm(1, b"", 3, {"partition": "long", "gpus_per_node": 1})
    tasks = [Task(name, name, alone=name == "measure") for name in ("one", "two", "measure")]
    alike, alone = slurm.scripts(tasks)
    for line in ("array=0-1%1", "cpus-per-task=3", "gpus-per-node=1", "partition=long"):
        assert f"#SBATCH --{line}\n" in alike
    assert "exclusive" not in alike
    assert "#SBATCH --exclusive\n" in alone
    assert "array" not in alone


class Scripted:
    """An engine whose workers do what a list says."""

    workers, machines = 2, 1

    def __init__(self, outcomes: dict[str, list[Any]]) -> None:
        self.outcomes, self.started = outcomes, list[str]()

    def start(self, jobs: Any) -> list[str]:
        self.started += [task.name for task, _ in jobs]
        return [task.name for task, _ in jobs]

    def ended(self, handles: Any) -> list[str]:
        return list(handles)

    def result(self, handle: str) -> dict[str, Any]:
        found = self.outcomes[handle].pop(0)
        if isinstance(found, Exception):
            raise found
        return {"host": "there", "seconds": 1.0, **found}

    def cancel(self, handles: Any) -> None:
        self.stopped = list(handles)

    def close(self) -> None: ...


def test_what_fails_is_tried_again_unless_only_the_user_can_mend_it(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("suite: tiny\n")
    monkeypatch.setattr(stages, "remote_settings", dict)
    done = {"lock": {"cmd": "x", "outs": []}, "files": {"results/a.json": b"{}"}}
    engine = Scripted(
        {
            "a": [RuntimeError("node down"), {"log": "error: The disk is full: free it."}, done],
            "b": [{"log": "error: Settings are wrong: mend them."}],
            "c": [{"log": "Traceback"}] * 3,
            "d": [],
        }
    )
    needs = {"d": frozenset("b")}
    tasks = [Task(name, name, needs=needs.get(name, frozenset())) for name in "abcd"]
    suite: Any = type("Suite", (), {"suite": "tiny"})
    lines: list[str] = []
    failure = stages.Stages(suite, "0" * 40, "workers").run(tasks, engine, lines.append)
    assert sorted(engine.started) == ["a", "a", "a", "b", "c", "c", "c"]
    assert failure.startswith("2 of 4 tasks failed and 1 wait for them")
    assert "Settings are wrong" in failure
    assert Path("results/a.json").read_bytes() == b"{}"
    assert re.search(r"a:\n    cmd: x", Path("dvc.lock").read_text())
    assert engine.stopped == []


def test_what_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"ray is not installed: .*glnet-bench\[cluster\]"):
        engines.load("ray")
    monkeypatch.chdir(tmp_path)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "commit", "--allow-empty", "--quiet", "--message", "first")
    assert re.fullmatch(r"[0-9a-f]{40}", head.require_clean())
    Path("new.py").touch()
    with pytest.raises(UserError, match="commit code and settings first"):
        head.require_clean()
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], check=True)
    with pytest.raises(UserError, match="There is no DVC remote"):
        stages.remote_settings()


def test_a_checkout_is_of_the_commit(tmp_path: Path, monkeypatch: Any) -> None:
    source = tmp_path / "source"
    source.mkdir()
    git(source, "init", "--quiet")
    for content in ("one", "two"):
        (source / "file").write_text(content)
        git(source, "add", ".")
        git(source, "commit", "--quiet", "--message", content)
    (source / "file").write_text("three")
    monkeypatch.chdir(source)
    worker._unpack(head.packed_code(), tmp_path / "place")
    assert (tmp_path / "place/file").read_text() == "two"
    assert [path.name for path in tmp_path.iterdir() if "tmp" in path.name] == []


def test_what_is_named_after_the_machine_is_measured_alone() -> None:
    """Names of a suite, data set and machine may be the same."""
    for out in ("results/one/measure/one", "results/one/steps/one.json"):
        assert _has("one", out)
    for out in ("results/one/evaluate", "results/predict.json", "data/prepared/one"):
        assert not _has("one", out)


def test_makespans() -> None:
    """Worked out by hand: two trainings of 3 and 2 s, an evaluation of 1 s after both, and a
    measurement of 4 s that has the machine to itself."""
    tasks = [
        Task("a", "a", model="a"),
        Task("b", "b", model="b"),
        Task("c", "c", frozenset("ab"), runs=("c",)),
        Task("m", "m", alone=True),
    ]
    seconds = {"a": 3.0, "b": 2.0, "c": 1.0, "m": 4.0}
    assert makespan_s(tasks, seconds, workers=1) == 10
    assert makespan_s(tasks, seconds, workers=2) == 8  # m from 0 to 4 or at the end
    assert makespan_s(tasks, seconds, workers=3, machines=3) == 4
    assert [[task.name for task in step] for step in steps_of(tasks)] == [["a", "b", "m"], ["c"]]
    twice = repeated(tasks, 2)
    assert len(twice) == 7  # what is measured once is not repeated
    assert {"a of 1", "b of 1"} == next(task for task in twice if task.name == "c of 1").needs


@pytest.fixture
def cluster_with_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a Ray cluster with one logical GPU, which wants the token of a file."""
    path = tmp_path / "token"
    path.write_text(secrets.token_hex(32))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    monkeypatch.setenv("RAY_worker_niceness", "0")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    ray = Path(sys.executable).with_name("ray")
    options = ("--num-cpus=4", "--num-gpus=1", "--include-dashboard=false", f"--port={port}")
    folder = tempfile.mkdtemp(prefix="ray")  # a short path, for sockets
    process = subprocess.Popen(
        [ray, "start", "--head", "--block", *options, f"--temp-dir={folder}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    yield f"127.0.0.1:{port}"
    process.terminate()
    process.wait()
    shutil.rmtree(folder)


TRAININGS = """
import json, sys, time
from pathlib import Path
from bench.cluster import engines, worker
from bench.cluster.plan import Task

def perform(code, job):
    own = Path(job["folder"], job["name"])
    own.touch()
    seen, end = set(), time.monotonic() + 60
    while not {own.name, *job["beside"]} <= seen and time.monotonic() < end:
        seen |= {path.name for path in own.parent.iterdir()}
        time.sleep(0.05)
    time.sleep(2)  # what waits for the other to begin would not see it
    own.unlink()
    return {"seen": sorted(seen)}

worker.perform = perform
address, folder, shares = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
ray = engines.Ray(address, 1, b"", 1, True, shares.__getitem__)
small = [name for name in shares if shares[name] < 0.5]
jobs = [
    {"folder": folder, "name": name, "beside": small if name in small else []} for name in shares
]
handles = ray.start([(Task(job["name"], "train", model=job["name"]), job) for job in jobs])
left = list(handles)
while left:
    left = [one for one in left if one not in ray.ended(left)]
print(json.dumps({job["name"]: ray.result(one)["seen"] for job, one in zip(jobs, handles)}))
ray.close()
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_small_trainings_share_a_card_of_a_cluster_with_a_token(
    cluster_with_token: str, project: Path, edit_suite: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """By predicted memory: two fit at once, the third has to wait until both have ended."""

    def large(suite: dict[str, Any]) -> None:
        unet = copy.deepcopy(suite["models"]["unet"])
        unet["training"]["phases"]["train"]["batch"] = 500
        suite["models"]["large"] = unet

    edit_suite(large)
    needed = start_module._share(read_suite(), 2**40)("large") * 2**40
    share = start_module._share(read_suite(), int(1.02 * needed))
    shares = {name: share(name) for name in ("colour", "unet", "large")}
    assert shares["colour"] < 0.5 > shares["unet"]
    assert shares["large"] + min(shares.values()) > 1
    marks = tmp_path / "marks"
    marks.mkdir()
    command = [sys.executable, "-c", TRAININGS, cluster_with_token, str(marks), json.dumps(shares)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["colour"] == seen["unet"] == ["colour", "unet"]
    assert seen["large"] == ["large"]
    Path(tmp_path / "token").write_text(secrets.token_hex(32))
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert "There is no Ray cluster at" in done.stderr
