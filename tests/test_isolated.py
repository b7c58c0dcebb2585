"""What becomes of a process is told apart, and kept."""

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from conftest import ROOT
from matplotlib.figure import Figure

from bench.errors import UserError
from bench.parallel import Report, host_limit_bytes, parallel_map, processes, run_isolated
from bench.pipeline.measure import PRELOAD
from bench.report.figures.static import written


def answers(report: Report, number: int) -> None:
    report({"first": number})
    report({"second": os.getpid()})


def refuses(report: Report) -> None:
    report({"first": 1})
    raise UserError("x.yaml is missing: write it.")


def is_wrong(report: Report) -> None:
    raise ValueError("wrong\nin two lines")


def wants_too_much(report: Report) -> None:
    torch.empty(2**60, dtype=torch.uint8)


def fills_the_card(report: Report) -> None:
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def meets_a_limit(report: Report) -> None:
    report({"first": 1})
    resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
    bytearray(2**31)


def meets_a_limit_in_torch(report: Report) -> None:
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + 2**27, held + 2**27))
    torch.zeros(2**29, dtype=torch.uint8)


def is_killed(report: Report) -> None:
    report({"first": 1})
    os.kill(os.getpid(), signal.SIGKILL)


def crashes(report: Report) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def leaves(report: Report) -> None:
    os._exit(3)


def sleeps(report: Report) -> None:
    report({"first": 1})
    time.sleep(60)


def sleeps_in_its_turn(report: Report, *_: Any) -> None:
    report({"first": os.getpid()})
    time.sleep(60)


def doubled(number: int) -> int:
    return 2 * number


def dies_at_the_third(number: int, _: bytes) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.1)
    return number


def naps(_: int) -> None:
    time.sleep(60)


def fails_at_the_second(number: int) -> int:
    if number == 2:
        raise ValueError("the second")
    return number


def test_what_is_told_arrives_from_another_process() -> None:
    found = run_isolated(answers, 7, limit_s=60)
    assert (found.status, found.reason, found.reported["first"]) == ("ok", None, 7)
    assert found.reported["second"] != os.getpid()


@pytest.mark.parametrize(
    ("work", "status", "reason"),
    [
        (refuses, "failed", "x.yaml is missing: write it."),
        (is_wrong, "failed", "ValueError: wrong"),
        (wants_too_much, "oom", "can't allocate memory"),
        (fills_the_card, "oom", "OutOfMemoryError: CUDA out of memory"),
        (meets_a_limit, "oom", "MemoryError"),
        (meets_a_limit_in_torch, "oom", "can't allocate memory"),
        (crashes, "failed", "the process ended with signal 11"),
        (leaves, "failed", "the process ended with exit code 3"),
    ],
)
def test_how_it_ended(work: Callable[..., None], status: str, reason: str) -> None:
    found = run_isolated(work, limit_s=60)
    assert found.status == status
    assert reason in (found.reason or "")
    assert found.reported == ({"first": 1} if work in (refuses, meets_a_limit) else {})


@pytest.mark.parametrize(
    ("counts", "status", "reason"),
    [
        ((4, 5), "oom", "killed by the system: out of memory"),
        ((4, 4), "failed", "killed with signal 9, but not for lack of memory"),
        ((None, None), "oom", "killed by the system, probably out of memory"),
    ],
)
def test_the_kernels_killer_is_told_from_anybody_elses(
    counts: tuple[Any, Any], status: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(counts)
    monkeypatch.setattr(processes, "_oom_kills", lambda: next(answers))
    found = run_isolated(is_killed, limit_s=60)
    assert (found.status, found.reason, found.reported) == (status, reason, {"first": 1})


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's counter is Linux's")
def test_the_kernel_counts_its_kills() -> None:
    assert processes._oom_kills() is not None


def test_a_process_that_takes_too_long_is_ended() -> None:
    run_isolated(
        answers, 7, limit_s=60
    )  # the server is up: what follows is the limit of the work alone
    begun = time.monotonic()
    found = run_isolated(sleeps, limit_s=10)
    assert time.monotonic() - begun < 40
    assert (found.status, found.reason) == ("failed", "not done within 10 s")
    assert found.reported == {"first": 1}


def test_libraries_load_without_touching_a_card_or_starting_threads_of_torch() -> None:
    """A CUDA context, or a pool of threads, does not survive a fork."""
    code = (
        f"import importlib; [importlib.import_module(name) for name in {PRELOAD!r}]\n"
        "import threading, torch\n"
        "assert not torch.cuda.is_initialized()\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_limit_of_this_process_is_less_than_the_machine() -> None:
    whole = host_limit_bytes()
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_DATA, (2**30, 2**30))\n"
        "from bench.parallel import host_limit_bytes; print(host_limit_bytes())"
    )
    asked = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True
    )
    assert int(asked.stdout) == 2**30 < whole


def test_many_tasks_come_back_in_their_order() -> None:
    assert parallel_map(doubled, [(one,) for one in range(20)], "t", "x", jobs=2) == [
        2 * one for one in range(20)
    ]


def test_the_error_of_a_task_is_that_of_the_call() -> None:
    with pytest.raises(ValueError, match="the second") as found:
        parallel_map(fails_at_the_second, [(one,) for one in range(5)], "t", "x", jobs=2)
    assert "in fails_at_the_second" in found.value.__notes__[0]
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("size", [1, 2**20])  # more than a pipe holds
def test_a_killed_worker_ends_the_call_in_one_sentence(size: int) -> None:
    tasks = [(one, bytes(size)) for one in range(40)]
    with pytest.raises(
        UserError, match="process of `report` was killed, probably out of memory: use fewer than 2"
    ):
        parallel_map(dies_at_the_third, tasks, "report", "figure", jobs=2)
    assert multiprocessing.active_children() == []


def draws(dies: bool) -> Figure:
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)
    return Figure()


def test_a_worker_that_the_system_kills_ends_the_report(tmp_path: Path) -> None:
    drawings = [(str(one), partial(draws, one == 3), ("svg",)) for one in range(8)]
    with (
        pytest.raises(UserError, match="process of `report` was killed"),
        written(drawings, tmp_path),
    ):
        pass
    with written(drawings[:3], tmp_path):
        pass
    assert {"0.svg", "1.svg", "2.svg"} <= {path.name for path in tmp_path.iterdir()}
    with pytest.raises(KeyError), written([("0", partial(time.sleep, 60), ())] * 4, tmp_path):
        raise KeyError
    assert multiprocessing.active_children() == []


STARTS = {
    "measure": """
from bench.pipeline import measure
measure._measure_memory = test_isolated.sleeps_in_its_turn
suite = replace(read_suite(), compute=Compute(jobs=2))
def work():
    measure.measure_all(suite, list(suite.runs))
""",
    "gpu_memory": """
from bench.experiments import gpu_memory
gpu_memory._measure = test_isolated.sleeps_in_its_turn
gpu_memory.predict_case = lambda case: dict.fromkeys(gpu_memory.PREDICTED)
def work():
    gpu_memory.measure_all(dict.fromkeys("abcdef"), Compute(), 2)
""",
    "latency": """
from bench.parallel import run_isolated
def work():
    run_isolated(test_isolated.sleeps_in_its_turn, limit_s=60)
""",
    "evaluate": """
from bench.parallel import parallel_map
def work():
    parallel_map(test_isolated.naps, [(1,)] * 6, "evaluate", "run", jobs=2)
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_command(start: str, sign: signal.Signals) -> None:
    """Ctrl-C, a kill, and the system's kill for memory."""
    code = (
        "import test_isolated; from dataclasses import replace; from bench import cli\n"
        "from bench.config import Compute, read_suite\n"
        f"{STARTS[start]}\nif __name__ == '__main__':\n    cli.report_errors(work)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE) as process:
        whole = psutil.Process(process.pid)
        jobs = 1 if start == "latency" else 2
        while len(family := whole.children(recursive=True)) < 2 + jobs:  # server, tracker
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.1)
        begun = time.monotonic()
        process.send_signal(sign)
        process.wait(30)
        _, alive = psutil.wait_procs(family, timeout=20)
        assert alive == []
        assert time.monotonic() - begun < 30
        if sign == signal.SIGINT:
            assert process.returncode == 130
            assert process.stderr
            assert b"Traceback" not in process.stderr.read()
