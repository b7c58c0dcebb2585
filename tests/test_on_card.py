"""The published settings on a real card: all but the card."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL, call_command

from bench import record
from bench.config import Compute, read_suite
from bench.errors import UserError
from bench.experiments import gpu_memory, step_time
from bench.experiments.gpu_memory import published_cases
from bench.memory.runs import Case


@pytest.fixture
def with_card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """What is asked of a card that is not there: the keys that are measured, then those timed."""
    asked: list[list[str]] = []

    def measure_all(chosen: Mapping[str, Case], compute: Compute, jobs: int) -> dict[str, Any]:
        asked.append(list(chosen))
        meters = {"allocated": {"bytes": 7}}
        row = {"status": "ok", "reason": None, "meters": meters, "device": {"device": "cuda"}}
        lost = {"status": "oom", "reason": "full", "device": {"device": "cuda"}}
        return {key: dict(row if index else lost) for index, key in enumerate(chosen)}

    def time_all(found: Mapping[str, Case], compute: Compute, limit_s: float) -> dict[str, Any]:
        asked.append(list(found))
        return {key: {"wall_s": [0.5]} for key in list(found)[:1]}

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_memory, "measure_all", measure_all)
    monkeypatch.setattr(gpu_memory, "time_all", time_all)
    monkeypatch.setattr(gpu_memory, "FOLDER", tmp_path)
    return asked


def arguments(*words: str) -> Any:
    import argparse

    parser = argparse.ArgumentParser()
    gpu_memory._arguments(parser)
    return parser.parse_args(words)


def test_every_published_run_is_a_case_once() -> None:
    found = list(published_cases())
    assert len({case.key for case in found}) == len(found)
    named = {(case.dataset, case.run.name, case.done) for case in found}
    predicted = record.read(record.RESULTS / "successors.json").values["rows"]
    assert {(row["dataset"], row["run"], row["done"]) for row in predicted} <= named
    paper = record.read(record.RESULTS / "predict.json").values["runs"]
    published = {("DeepGlobe", name, "") for name, run in paper.items() if run["published"]}
    assert published <= named
    assert ("DeepGlobe", "glnet-collapsed", "") in named


def test_the_record_holds_memory_of_all_and_seconds_of_those_that_fit(
    with_card: list[list[str]], tmp_path: Path
) -> None:
    gpu_memory.work(arguments("--machine", "big", "--only", "fctl"))
    measured, timed = with_card
    assert timed == measured[1:], "the first was out of memory"
    found = record.read(tmp_path / "big.json")
    rows = found.values["rows"]
    assert [row["status"] for row in rows] == ["oom", *["ok"] * (len(rows) - 1)]
    assert [row.get("wall_s") for row in rows][:3] == [None, [0.5], None]
    assert found.provenance["device"] == "cuda"
    assert all("fctl" in row["run"] for row in rows)


def test_memory_of_the_record_is_kept_where_only_time_is_asked_for(
    with_card: list[list[str]], tmp_path: Path
) -> None:
    gpu_memory.work(arguments("--machine", "big", "--only", "isdnet", "--time-limit", "0"))
    before = json.loads((tmp_path / "big.json").read_text())["values"]["rows"]
    assert len(with_card) == 1
    gpu_memory.work(arguments("--machine", "big", "--timing"))
    after = json.loads((tmp_path / "big.json").read_text())["values"]["rows"]
    assert with_card[1] == [row["key"] for row in before[1:]]
    assert [row.pop("wall_s", None) for row in after][:3] == [None, [0.5], None]
    assert before == after


def test_without_a_card_it_says_where_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"no CUDA device here: .* results/predict\.json"):
        gpu_memory.work(arguments())


def test_a_pattern_that_finds_nothing_is_told(with_card: list[list[str]]) -> None:
    with pytest.raises(UserError, match="No run matches 'nothing'"):
        gpu_memory.work(arguments("--only", "nothing"))


@pytest.mark.parametrize("name", ["isdnet", "fctl", "glnet-collapsed"])
def test_seconds_of_a_case(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, with a small network and of a small image."""
    monkeypatch.setattr(gpu_memory, "ROUNDS", 2)
    case = replace(next(case for case in published_cases() if case.run.name == name), side_px=96)
    sizes = {"patch_px": 64, "overlap_px": 0, "global_px": 64, "whole_px": 64}
    widths = {"width": 6, "head_width": 24, "fpn_width": 8, "smooth_width": 4, **SMALL}
    own = {key: value for key, value in {**sizes, **widths}.items() if hasattr(case.run.spec, key)}
    found = gpu_memory._seconds(replace(case, run=case.run.varied(**own)), torch.device("cpu"))
    assert 1 <= len(found["wall_s"]) <= 2
    assert ("forward_s" in found) == (name == "isdnet")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "("], "is not a regular expression"),
        (["--machine", "../../x"], "names become names of files"),
        (["--machine", ""], "names become names of files"),
    ],
)
def test_arguments_that_cannot_be_meant(words: list[str], said: str, capsys: Any) -> None:
    with pytest.raises(SystemExit):
        arguments(*words)
    assert said in capsys.readouterr().err


def test_hours_of_all_trainings(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fill(parser: Any) -> None:
        step_time._arguments(parser)
        parser.set_defaults(work=step_time.work)

    words = (
        "unet glnet-local --suite params.yaml --side 64 --classes 2 --rounds 1 --threads 1 --hours"
    )
    call_command(fill, *words.split())
    *lines, last = map(json.loads, capsys.readouterr().out.splitlines())
    models = read_suite(Path("params.yaml")).models
    expected = 0.0
    for line in lines:
        schedule = models[line["model"]].training.phases[line["part"]]
        assert line["images"] == schedule.batch
        expected += schedule.steps * line["wall_s"][0] / 3600
    assert len(lines) == 2
    assert last["hours"] == pytest.approx(expected)


def test_a_strategy_that_a_timed_model_does_not_have(project: Path) -> None:
    def fill(parser: Any) -> None:
        step_time._arguments(parser)
        parser.set_defaults(work=step_time.work)

    words = (
        "unet --suite params.yaml --side 64 --rounds 1 --threads 1 --phases none --strategy nope"
    )
    with pytest.raises(UserError, match=r"is 'nope'; method .* has downsample, patch, whole"):
        call_command(fill, *words.split())
