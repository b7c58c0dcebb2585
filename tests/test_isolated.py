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

from bench import isolated
from bench.errors import Refusal
from bench.isolated import Tell, ask, host_limit_bytes
from bench.measure import PRELOAD


def answers(tell: Tell, number: int) -> None:
    tell({"first": number})
    tell({"second": os.getpid()})


def refuses(tell: Tell) -> None:
    tell({"first": 1})
    raise Refusal("x.yaml is missing: write it.")


def is_wrong(tell: Tell) -> None:
    raise ValueError("wrong\nin two lines")


def wants_too_much(tell: Tell) -> None:
    torch.empty(2**60, dtype=torch.uint8)


def fills_the_card(tell: Tell) -> None:
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def meets_a_limit(tell: Tell) -> None:
    tell({"first": 1})
    resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
    bytearray(2**31)


def meets_a_limit_in_torch(tell: Tell) -> None:
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + 2**27, held + 2**27))
    torch.zeros(2**29, dtype=torch.uint8)


def is_killed(tell: Tell) -> None:
    tell({"first": 1})
    os.kill(os.getpid(), signal.SIGKILL)


def crashes(tell: Tell) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def leaves(tell: Tell) -> None:
    os._exit(3)


def sleeps(tell: Tell) -> None:
    tell({"first": 1})
    time.sleep(60)


def test_what_is_told_arrives_from_another_process() -> None:
    found = ask(answers, 7, limit_s=60)
    assert (found.status, found.reason, found.told["first"]) == ("ok", None, 7)
    assert found.told["second"] != os.getpid()


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
    found = ask(work, limit_s=60)
    assert found.status == status
    assert reason in (found.reason or "")
    assert found.told == ({"first": 1} if work in (refuses, meets_a_limit) else {})


@pytest.mark.parametrize(
    ("counts", "status", "reason"),
    [
        ((4, 5), "oom", "killed by the system for memory"),
        ((4, 4), "failed", "killed by somebody (signal 9), not by the system for memory"),
        ((None, None), "oom", "killed by the system, most likely for memory"),
    ],
)
def test_the_kernels_killer_is_told_from_anybody_elses(
    counts: tuple[Any, Any], status: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(counts)
    monkeypatch.setattr(isolated, "_kills", lambda: next(answers))
    found = ask(is_killed, limit_s=60)
    assert (found.status, found.reason, found.told) == (status, reason, {"first": 1})


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's counter is Linux's")
def test_the_kernel_counts_its_kills() -> None:
    assert isolated._kills() is not None


def test_a_process_that_takes_too_long_is_ended() -> None:
    ask(answers, 7, limit_s=60)  # the server is up: what follows is the limit of the work alone
    begun = time.monotonic()
    found = ask(sleeps, limit_s=10)
    assert time.monotonic() - begun < 40
    assert (found.status, found.reason) == ("failed", "not done within 10 s")
    assert found.told == {"first": 1}


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
        "from bench.isolated import host_limit_bytes; print(host_limit_bytes())"
    )
    asked = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True
    )
    assert int(asked.stdout) == 2**30 < whole
