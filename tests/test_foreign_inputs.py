"""Data and checkpoints that were not made with the suite's settings are refused: DVC does not see what
commands outside of it read, nor files that change while their date stays."""

import argparse
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_suite, write_suite

from bench import record
from bench.commands import what_if
from bench.config import read_suite
from bench.errors import UserError
from bench.pipeline import evaluate, measure, measure_training
from bench.pipeline.train import train
from bench.report import findings
from bench.report.load_records import load_records
from bench.streaming import open_job
from data.dataset import open_dataset

ALL = argparse.Namespace(run=[], missing=False, limit=60.0, predicted=False)
READERS: dict[str, Callable[[], object]] = {
    "evaluate": lambda: evaluate.work(ALL),
    "measure": lambda: measure.work(ALL),
    "predict": lambda: open_job("colour"),
    "what-if": lambda: what_if.compare(read_suite(), "colour", [], "test"),
}
"""Commands that read a checkpoint."""


def edit(change: Callable[[dict[str, Any]], object]) -> None:
    suite = tiny_suite() | {"runs": {"colour": {"model": "colour", "strategy": "whole"}}}
    suite["models"] = {"colour": suite["models"]["colour"]}
    change(suite)
    write_suite(Path(), suite)


@pytest.fixture
def trained(project: Path) -> Path:
    edit(lambda suite: None)
    return train(read_suite(), "colour")


def schedule(suite: dict[str, Any]) -> dict[str, Any]:
    return suite["models"]["colour"]["training"]["phases"]["train"]


def other_steps() -> None:
    edit(lambda suite: schedule(suite).update(steps=2))


def other_seed() -> None:
    edit(lambda suite: suite["models"]["colour"].update(seed=5))


def other_suite() -> None:
    edit(lambda suite: suite.update(suite="other"))


def other_training() -> None:
    """Of another suite with a model of this name, which overwrites the checkpoint."""
    edit(lambda suite: suite.update(suite="other") or schedule(suite).update(batch=1))
    train(read_suite(), "colour")
    edit(lambda suite: None)


def other_data() -> None:
    path = Path("data/prepared/tiny/dataset.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"credit": "Another."}))


CASES = {
    other_steps: r"phases\.train\.steps was 1, now 2; run `dvc repro train@colour`",
    other_seed: "colour.json is of a training with other settings .*: seed was 0, now 5; run",
    other_suite: r"results/other/train/colour\.json is missing: run `dvc repro`",
    other_training: r"colour\.pt is not from the training of results/tiny/train/colour\.json",
    other_data: r"data/prepared/tiny/dataset\.json has changed; run `dvc repro train@colour`",
    Path("checkpoints/colour.pt").unlink: r"checkpoints/colour\.pt is missing: run `dvc repro",
}


@pytest.mark.parametrize("change", CASES)
def test_the_checkpoint_of_another_training_is_refused(
    trained: Path, change: Callable[[], None]
) -> None:
    change()
    for read in READERS.values():
        with pytest.raises(UserError, match=CASES[change]):
            read()
    assert not list(record.RESULTS.glob("*/evaluate/*"))
    assert not list(record.RESULTS.glob("*/measure/*"))


def test_a_checkpoint_that_is_named_is_taken_and_older_records_are_too(trained: Path) -> None:
    path = record.path_of("tiny", "train", "colour")
    content = json.loads(path.read_text())
    del content["values"]["checkpoint_sha256"]
    path.write_text(json.dumps(content))
    assert open_job("colour").weights == trained
    other_steps()
    assert open_job("colour", weights=trained).weights == trained


def test_the_report_says_which_records_are_out_of_date(trained: Path) -> None:
    evaluate.work(ALL)

    def said() -> list[str]:
        entries = load_records(read_suite()).entries
        assert [one.text for one in findings.reservations(entries)][:1] == [
            entry.outdated for entry in entries if entry.outdated
        ]
        return entries[0].outdated.split("; ")

    assert said() == [""]
    other_steps()
    changed = (
        "its record is out of date (training.phases.train.steps was 1, now 2), run `dvc repro`"
    )
    assert said() == [f"train: {changed}", f"evaluate: {changed}"]
    edit(lambda suite: suite["runs"]["colour"].update(published="UNet / global"))
    assert said() == [
        "evaluate: its record is out of date (published was None, now 'UNet / global'), run `dvc repro`"
    ]
    edit(lambda suite: None)
    path = record.path_of("tiny", "train", "colour")
    content = json.loads(path.read_text())
    for place, key, what in (
        ("values", "checkpoint_sha256", "weights"),
        ("provenance", "data_sha256", "data"),
    ):
        other = content | {place: content[place] | {key: "0" * 64}}
        path.write_text(json.dumps(other))
        (sentence,) = said()
        assert f"made with other {what} than train has recorded" in sentence
    path.write_text(json.dumps(content | {"settings": {"model": {"dataset": 7}}}))
    assert said()[0].startswith("train: its record is out of date (model: the key")


def test_data_that_were_prepared_with_other_settings_are_refused(trained: Path) -> None:
    edit(lambda suite: suite["datasets"]["tiny"].update(settings=tiny_settings(px_per_degree=4)))
    others = READERS | {"train": lambda: train(read_suite(), "colour")}
    others["steps"] = lambda: measure_training.work(argparse.Namespace(predicted=False))
    del others["predict"]  # reads no data
    for read in others.values():
        with pytest.raises(UserError, match=r"data/prepared/tiny .*: px_per_degree was 3, now 4"):
            read()


def tiny_settings(**changes: Any) -> dict[str, Any]:
    return tiny_suite()["datasets"]["tiny"]["settings"] | changes


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_a_flipped_byte_of_prepared_data_is_refused_by_name(trained: Path, kind: str) -> None:
    """Though the file's size and date stay."""
    path = Path(f"data/prepared/tiny/{kind}/a.npy")
    content, seen = bytearray(path.read_bytes()), path.stat()
    content[-100] = 0 if content[-100] else 1
    path.write_bytes(content)
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    dataset = open_dataset("tiny")
    dataset.read("b")
    for read in (dataset.read, dataset.mapped):
        with pytest.raises(UserError, match=rf"{kind}/a\.npy is not as it was prepared .*: delete"):
            read("a")
    shutil.rmtree("checkpoints/partial")
    with pytest.raises(UserError, match=rf"{kind}/a\.npy is not as it was prepared"):
        train(read_suite(), "colour")
