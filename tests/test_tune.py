"""`glnet-bench tune`: other learning rates, compared on val."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import call_command

from bench import record
from bench.config import read_suite
from bench.errors import UserError
from bench.pipeline import tune
from bench.pipeline.train import PARTIAL

Edit = Callable[[Callable[[dict[str, Any]], None]], None]
RECORD = Path("results/tiny/tune/fpn.json")


def test_candidates_differ_in_rate_and_steps_alone(project: Path) -> None:
    model = read_suite().models["glnet"]
    other = tune.candidate(model, 3, 0.5)
    for name, schedule in model.training.phases.items():
        found = other.training.phases[name]
        assert found.learning_rate == pytest.approx(3 * schedule.learning_rate)
        assert found.steps == max(1, round(schedule.steps / 2))
        assert found.batch == schedule.batch
    assert tune.candidate(model, 1, 1) == model.trainings[0]


def test_every_candidate_is_kept_with_its_miou(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call_command(tune.command, "fpn", "--factors", "0.1", "1", "--share", "1")
    values = record.read(RECORD).values["candidates"]
    assert values.keys() == {"0.1", "1"}
    printed = capsys.readouterr().out.splitlines()
    assert [
        f"{100 * one['miou']:.1f} %" in line
        for one, line in zip(values.values(), printed, strict=True)
    ] == [True, True]
    assert not list(PARTIAL.glob("*"))

    call_command(tune.command, "fpn", "--factors", "3", "--share", "1")
    assert record.read(RECORD).values["candidates"].keys() == {"0.1", "1", "3"}


def test_candidates_of_other_settings_are_not_mixed(project: Path) -> None:
    call_command(tune.command, "fpn", "--factors", "1", "--share", "1")
    with pytest.raises(UserError, match=r"share 1\.0, the new ones have 0\.5"):
        call_command(tune.command, "fpn", "--factors", "3", "--share", "0.5")
    assert record.read(RECORD).values["candidates"].keys() == {"1"}


@pytest.mark.parametrize("words", [("--share", "0"), ("--factors", "-1"), ("--share", "1.5")])
def test_what_cannot_be_tried(project: Path, words: tuple[str, str]) -> None:
    with pytest.raises(UserError, match=words[0]):
        call_command(tune.command, "fpn", *words)
    assert not RECORD.exists()
