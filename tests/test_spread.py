"""Work over all cores: in order, and an error of one is the error of all."""

import os
import signal
import time
from pathlib import Path

import pytest

from bench.errors import UserError
from bench.parallel import parallel_map


def doubled(number: int) -> tuple[int, int]:
    return 2 * number, os.getpid()


def refuse_odd(number: int, folder: Path) -> None:
    if number % 2:
        raise UserError(f"{number} is odd.")
    time.sleep(0.02)
    (folder / str(number)).touch()


def test_what_comes_back_is_in_the_order_of_the_tasks() -> None:
    found = parallel_map(doubled, [(n,) for n in range(6)], "double", "number")
    assert [number for number, _ in found] == [0, 2, 4, 6, 8, 10]
    assert os.getpid() not in {process for _, process in found}


def test_one_task_is_not_worth_a_process() -> None:
    assert parallel_map(doubled, [(4,)], "double", "number") == [(8, os.getpid())]
    assert parallel_map(doubled, [], "double", "number") == []


def test_one_core_does_it_all_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0}, raising=False)
    assert parallel_map(doubled, [(1,), (2,)], "double", "number") == [
        (2, os.getpid()),
        (4, os.getpid()),
    ]


def test_an_error_ends_it_and_says_what_it_was(tmp_path: Path) -> None:
    tasks = [(n, tmp_path) for n in (2, 3, *range(4, 200, 2))]
    with pytest.raises(UserError, match="3 is odd"):
        parallel_map(refuse_odd, tasks, "look", "number")
    assert len(list(tmp_path.iterdir())) < len(tasks) // 2, "the rest is not waited for"


def end_suddenly(number: int) -> int:
    if number:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_process_that_was_killed_is_told_in_a_sentence() -> None:
    with pytest.raises(UserError, match=r"A process of `look` was killed.*fewer than 2 processes"):
        parallel_map(end_suddenly, [(0,), (1,)], "look", "number", jobs=2)
