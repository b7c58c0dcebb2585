"""Two processes with half the batch each learn what one learns from the whole."""

import multiprocessing
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import two_processes
from conftest import ROOT
from test_train import killed_at, weights

from bench import record
from bench.config import read_suite
from bench.errors import UserError
from bench.parallel import distributed
from bench.parallel.distributed import Place, find_place, processes
from bench.parallel.processes import PRELOAD
from bench.pipeline.train import PARTIAL, train

Edit = Callable[[Callable[[dict[str, Any]], None]], None]
STEPS = 10
FOUR_PHASES = ["global", "global-to-local", "local-to-global", "local"]
SLURM = {
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NODELIST": "node[07-09]",
    "SLURM_JOB_ID": "120034",
    "SLURM_STEP_ID": "2",
}


def calm(suite: dict[str, Any]) -> None:
    """Ten steps in which rounding stays rounding: with a few values a channel in the coarsest maps,
    or at larger steps, batch norm and Adam make a thousandth of 1e-16 within ten steps."""
    schedule = {"steps": STEPS, "learning_rate": 1e-4, "batch": 4}
    for model in suite["models"].values():
        phases = dict.fromkeys(model["training"]["phases"], schedule)
        model["training"] |= {"phases": phases, "checkpoint_every": STEPS}
    glnet = suite["models"]["glnet"]
    glnet["spec"] |= {"patch_px": 64, "sub_batch": 2, "phases": FOUR_PHASES}
    glnet["training"]["phases"] = dict.fromkeys(FOUR_PHASES, schedule)
    suite["models"]["unet"]["spec"]["size_px"] = 64


def train_in_two(by: str, model: str, folder: Path) -> list[str]:
    """A model trained by the command of the stage in two processes, to which the environment says
    what `torchrun` or `srun` says; what each printed. They are forked from a process that has the
    libraries, whose import takes longer than the training."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOAD))
    running = []
    for rank in range(2):
        if by == "torchrun":
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            environment = {**own, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        else:
            own = {"SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_PROCID": str(rank)}
            environment = {**SLURM, **own}
        environment["MASTER_PORT"] = port
        files = [folder / f"{name}-{rank}" for name in ("output", "errors")]
        process = context.Process(target=two_processes.train_as, args=(environment, model, *files))
        process.start()
        running.append((process, *files))
    for process, _, errors in running:
        process.join()
        assert process.exitcode == 0, errors.read_text()
    return [output.read_text() for _, output, _ in running]


def losses(name: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for phase, _, loss in record.read(record.path_of("tiny", "train", name)).values["loss"]:
        found.setdefault(phase, []).append(loss)
    return found


@pytest.mark.slow
def test_every_phase_of_glnet_learns_the_same_in_two_processes(
    project: Path, edit_suite: Edit, tmp_path: Path
) -> None:
    edit_suite(calm)
    one = weights(train(read_suite(), "glnet"))
    expected = losses("glnet")
    shutil.rmtree(PARTIAL)
    assert [len(expected[phase]) for phase in FOUR_PHASES] == [STEPS] * 4

    outputs = train_in_two("torchrun", "glnet", tmp_path)
    assert outputs == ["checkpoints/glnet.pt\n", ""]  # one writes, one speaks
    found = losses("glnet")
    for phase in FOUR_PHASES:
        assert found[phase] == pytest.approx(expected[phase], rel=1e-5), phase
    assert record.read(record.path_of("tiny", "train", "glnet")).provenance["processes"] == 2
    several = weights(Path("checkpoints/glnet.pt"))
    assert several.keys() == one.keys()
    for key in one:
        if "num_batches_tracked" in key:
            assert torch.equal(several[key], one[key]), key
        if "running_" in key:
            torch.testing.assert_close(several[key], one[key], rtol=0.01, atol=1e-4, msg=key)


@pytest.mark.slow
def test_a_rival_killed_alone_goes_on_in_two_processes(
    project: Path, edit_suite: Edit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def longer(suite: dict[str, Any]) -> None:
        calm(suite)
        schedule = {"steps": STEPS + 2, "learning_rate": 1e-4, "batch": 4}
        suite["models"]["unet"]["training"] = {"phases": {"train": schedule}, "checkpoint_every": 2}

    edit_suite(longer)
    train(read_suite(), "unet")
    expected = losses("unet")
    shutil.rmtree(PARTIAL)
    killed_at(2, monkeypatch, read_suite(), "unet")
    train_in_two("srun", "unet", tmp_path)
    assert losses("unet")["train"] == pytest.approx(expected["train"], rel=1e-5)


@pytest.mark.slow
def test_what_two_processes_join() -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = subprocess.run(
        [*launcher, two_processes.__file__], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    checks = [name for name in vars(two_processes) if name.startswith("check_")]
    assert done.stdout.split() == checks
    assert len(checks) >= 6


def test_a_process_started_alone_has_no_group() -> None:
    assert find_place({}) == Place()
    assert find_place({"WORLD_SIZE": "1", "RANK": "0"}) == Place()
    # The batch script of an allocation for many is one process; only srun starts them all.
    assert find_place({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}) == Place()
    with processes(torch.device("cpu")):
        assert not torch.distributed.is_initialized()
        assert (distributed.rank(), distributed.size()) == (0, 1)


def test_torchrun_and_slurm_say_where_a_process_stands() -> None:
    told = {"RANK": "5", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    assert find_place({"WORLD_SIZE": "8", **told}) == Place(5, 8, 1)
    assert find_place({"WORLD_SIZE": "8", **told, **SLURM}) == Place(5, 8, 1)  # torchrun in srun
    assert find_place(SLURM) == Place(1, 2, 0, "tcp://node07:17034")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, "2 processes .* MASTER_ADDR is not"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "OMPI_COMM_WORLD_SIZE says that 4 processes .* torchrun"),
        ({"PMI_SIZE": "2"}, "would train alone and write the same files"),
    ],
)
def test_processes_that_cannot_find_each_other_are_refused(
    environment: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        find_place(environment)


def test_a_process_that_hears_nobody_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "PATIENCE", distributed.timedelta(seconds=1))
    told = {"RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}
    for name, value in {"WORLD_SIZE": "2", **told}.items():
        monkeypatch.setenv(name, value)
    message = r"Process 1 of 2 cannot reach the others \(.+\): start all of them, by torchrun"
    with pytest.raises(UserError, match=message), processes(torch.device("cpu")):
        pass


def test_more_processes_than_cards_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="There are 2 cards on this machine, but more processes"):
        distributed._own_device(torch.device("cuda"), Place(2, 3, 2))


def test_a_batch_that_cannot_be_divided_is_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "size", lambda: 4)
    key = re.escape("models.unet.training.phases.train.batch")
    with pytest.raises(UserError, match=f"{key} is 2, which 4 processes cannot divide evenly"):
        train(read_suite(), "unet")
