"""What becomes of a process is told apart, and kept."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT

from bench.errors import UserError
from bench.parallel import Report, host_limit_bytes, processes, run_isolated
from bench.pipeline.measure import PRELOAD


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
        ((4, 5), "oom", "killed by the system for memory"),
        ((4, 4), "failed", "killed with signal 9, but not by the system for memory"),
        ((None, None), "oom", "killed by the system, most likely for memory"),
    ],
)
def test_the_kernels_killer_is_told_from_anybody_elses(
    counts: tuple[Any, Any], status: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(counts)
    monkeypatch.setattr(processes, "_kills", lambda: next(answers))
    found = run_isolated(is_killed, limit_s=60)
    assert (found.status, found.reason, found.reported) == (status, reason, {"first": 1})


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's counter is Linux's")
def test_the_kernel_counts_its_kills() -> None:
    assert processes._kills() is not None


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
