"""Records and files: whole or not there, and provenance that can be trusted."""

import errno
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, run

from bench import cli, record
from bench.config import ModelConfig, strict
from bench.errors import UserError
from bench.files import file_sha256, write_bytes, write_text
from bench.record import Record
from bench.report import findings
from bench.report.section import Finding


def example() -> Record:
    values = {"phases": {"all": {"seconds": 0.25, "steps": 3}}, "loss": [["all", 0, 1.5]]}
    return Record("train", "a", {"x": 1}, values, record.provenance(seed=3))


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "deep/a.json"
    record.write(path, example())
    assert record.read(path) == example()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is missing"),
        ("{", "is damaged"),
        ("{}", "is damaged"),
        ('{"schema": 0}', "has schema 0"),
        ('{"schema": 1, "extra": 2}', "is damaged"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "a.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        record.read(path)


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_bytes(path, b"new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_sha256_is_the_known_one(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    assert file_sha256(path).startswith("ba7816bf8f01cfea")


def test_only_what_a_person_changed_makes_a_checkout_dirty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("git", "init", "-q", cwd=tmp_path)
    who = ["-c", "user.name=a", "-c", "user.email=a@b.invalid"]
    run("git", *who, "commit", "-q", "--allow-empty", "-m", "x", cwd=tmp_path)
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "results/tiny/measure/a.json", "{}")
    write_text(tmp_path / "dvc.lock", "")
    assert not record.provenance()["dirty"]
    write_text(tmp_path / "suites/some.yaml", "suite: some")
    write_text(tmp_path / "params.yaml", "suite: other")
    run("git", "add", ".", cwd=tmp_path)
    run("git", *who, "commit", "-q", "-m", "y", cwd=tmp_path)
    write_text(tmp_path / "params.yaml", "suite: some")
    assert not record.provenance()["dirty"], "another suite that the commit has"
    write_text(tmp_path / "params.yaml", "suite: own")
    assert record.provenance()["dirty"]
    write_text(tmp_path / "params.yaml", "suite: some")
    write_text(tmp_path / "nohup.out", "steps")
    write_text(tmp_path / "logs/train.log", "steps")
    assert not record.provenance()["dirty"], "what a person writes down is no code"
    write_text(tmp_path / "code.py", "")
    found = record.provenance()
    assert found["dirty"]
    assert len(found["commit"]) == 40


def _no_git(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")


def _export(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(folder.parent))


def _export_in_another_checkout(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _repository(folder.parent)


def _foreign(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Git itself refuses a checkout of another owner ("dubious ownership")."""
    _repository(folder)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert b"dubious" in subprocess.run(["git", "status"], capture_output=True).stderr


def _without_a_commit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("git", "init", "-q", cwd=folder)


def _repository(folder: Path) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b.invalid"]
    run("git", "init", "-q", cwd=folder)
    run("git", *who, "commit", "-q", "--allow-empty", "-m", "x", cwd=folder)


@pytest.mark.parametrize(
    "place", [_no_git, _export, _export_in_another_checkout, _foreign, _without_a_commit]
)
def test_where_git_does_not_know_the_folder_commit_and_changes_are_unknown(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: Callable[[Path, pytest.MonkeyPatch], None],
) -> None:
    folder = tmp_path / "above/export"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    place(folder, monkeypatch)
    found = record.provenance()
    assert (found["commit"], found["dirty"]) == (None, None)
    assert findings.provenance([Record("train", "a", {}, {}, found)])[:2] == [
        Finding("commit", "unknown"),
        Finding("uncommitted changes", "unknown"),
    ]


def test_provenance_names_versions_and_machine() -> None:
    found = record.provenance(device="cpu")
    assert found["versions"]["torch"]
    assert found["device"] == "cpu"
    assert json.dumps(found)


FAILING = """
import errno, sys
from bench import cli
from bench.errors import UserError
def work(arguments):
    "Fail."
    raise {"refusal": UserError("No."), "full": OSError(errno.ENOSPC, "x", "f"),
           "os": OSError(errno.EACCES, "Permission denied", "f"), "ctrl-c": KeyboardInterrupt(),
           "memory": MemoryError(), "allocator": RuntimeError("can't allocate memory: x\\ny"),
           "bug": ZeroDivisionError()}[arguments.how]
cli.main(work, how="which way")
"""


@pytest.mark.parametrize(
    ("how", "status", "says"),
    [
        ("refusal", 1, "error: No.\n"),
        ("full", 1, "error: The disk is full (f): free some space"),
        ("os", 1, "error: Permission denied (f).\n"),
        ("memory", 1, "error: Memory ran out (MemoryError): "),
        ("allocator", 1, "error: Memory ran out (can't allocate memory: x y): "),
        ("ctrl-c", 130, ""),
        ("bug", 1, "Traceback"),
    ],
)
def test_a_stage_says_in_one_sentence_what_went_wrong(how: str, status: int, says: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAILING, how], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == status
    assert done.stderr.startswith(says)
    if how != "bug":
        assert done.stderr.count("\n") <= 1


@pytest.mark.parametrize(
    "work",
    [
        lambda: torch.empty(2**40, 2**40),
        lambda: torch.empty(10**30),
        lambda: torch.arange(10**30),
        lambda: np.empty((2**40, 2**40)),
        lambda: np.empty(2**50),
        lambda: np.arange(3).repeat(10**30),
    ],
)
def test_a_size_beyond_all_memory_is_one_sentence(work: Callable[[], object]) -> None:
    with pytest.raises(SystemExit, match=r"^error: Memory ran out \(.+\): close") as ended:
        cli.report_errors(work)
    gc.unfreeze()
    assert "\n" not in str(ended.value)


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["global_px=1000000000000", f"fpn_width={10**30}"])
def test_an_estimate_of_such_a_size_is_one_sentence(setting: str) -> None:
    """Torch logs a traceback of its own where an operator on fake tensors fails."""
    words = ("estimate", "glnet", "--size", "500x500", "--set", setting)
    done = run(sys.executable, "-m", "bench", *words, cwd=ROOT, ok=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: Memory ran out (")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("letters", "status"), [(70, 0), (71, 1), (150, 1)])
def test_a_long_folder_for_temporary_files_works_or_is_refused(letters: int, status: int) -> None:
    """Whatever is let through is short enough for the sockets of processes."""
    with tempfile.TemporaryDirectory(dir="/tmp") as base:
        folder = Path(base, "t" * (letters - len(base) - 1))
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", FORKING],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(folder)},
            capture_output=True,
            text=True,
        )
    assert done.returncode == status, done.stderr
    if status:
        assert done.stderr.startswith("error: The path of the temporary folder, ")
        assert done.stderr.count("\n") == 1


FORKING = """
import multiprocessing
from bench import cli
def work():
    started = multiprocessing.get_context("forkserver").Process(target=print)
    started.start()
    started.join()
    assert started.exitcode == 0
if __name__ == "__main__":
    cli.report_errors(work)
"""


def test_a_stage_works_in_the_projects_root_alone(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", FAILING, "bug"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "is not the project's root (dvc.yaml is missing)" in done.stderr


@pytest.mark.parametrize("stage", ["bench.pipeline.inputs", "bench.pipeline.predict_memory"])
def test_every_stage_has_help(stage: str) -> None:
    assert "usage" in run(sys.executable, "-m", stage, "--help", cwd=ROOT).stdout


def test_records_of_the_first_schema_name_methods_by_their_folders() -> None:
    """Methods were packages at the top level then; every committed record is read, whichever."""
    row = dict.fromkeys(("key", "dataset", "run", "strategy", "done", "published"), "x")
    text = json.dumps(
        {
            "schema": 1,
            "stage": "card",
            "name": "isdnet",
            "settings": {"model": {"method": "isdnet"}},
            "values": {"rows": [{**row, "method": "baselines"}, {**row, "method": "glnet"}]},
            "provenance": {},
        }
    )
    read = record.parse(text.encode(), "x.json", "delete it")
    assert read.settings["model"]["method"] == "baselines/isdnet"
    assert [row["method"] for row in read.values["rows"]] == ["baselines/generic", "glnet"]
    # Trainings leave DVCLive's folders beside their records.
    own = {"plots", "metrics.json"}
    paths = [p for p in (ROOT / "results").rglob("*.json") if not own & {*p.parts}]
    lines = {path: record.read(path).settings.get("model") for path in paths}
    methods = {
        strict(ModelConfig, line, str(path)).method
        for path, line in lines.items()
        if isinstance(line, dict)
    }
    assert len(paths) > 200
    assert {"glnet", "baselines/generic", "baselines/isdnet", "baselines/fctl"} <= methods
    assert all((ROOT / method / "spec.py").is_file() for method in methods)


def test_records_of_the_second_schema_have_the_names_of_today() -> None:
    row = {"key": "DeepGlobe fctl as meant", "done": "as meant", "dataset": "DeepGlobe"}
    row |= {"run": "fctl", "method": "baselines/fctl", "strategy": "patch", "published": None}
    content = {"schema": 2, "stage": "card", "name": "h100", "settings": {}, "provenance": {}}
    told = {"card": {"used_told_by": "v2", "sm_clock_most_mhz": 9}}
    text = json.dumps({**content, "values": {"rows": [{**row, **told}]}})
    (found,) = record.parse(text.encode(), "x.json", "delete it").values["rows"]
    assert (found["key"], found["done"]) == ("DeepGlobe fctl corrected", "corrected")
    assert found["card"] == {"used_bytes_from": "v2", "sm_clock_max_mhz": 9}
    part = {"predicted_bytes": 4, "booked_bytes": 5}
    content |= {"stage": "steps", "values": {"device": "cpu", "models": {"unet": {"train": part}}}}
    found = record.parse(json.dumps(content).encode(), "x.json", "delete it")
    assert (found.schema, found.values["models"]["unet"]["train"]) == (
        record.SCHEMA,
        {"predicted_bytes": 4, "allocated_bytes": 5},
    )
    # The names of today are wanted in a record that says it has them.
    with pytest.raises(UserError, match=r"x\.json is damaged \(.*allocated_bytes"):
        record.parse(json.dumps({**content, "schema": 3}).encode(), "x.json", "delete it")


@pytest.mark.parametrize("change", ["missing", "null"])
def test_each_key_of_the_fitted_model_is_needed(tmp_path: Path, change: str) -> None:
    sound = (ROOT / "results/predict.json").read_text()
    published = json.loads(sound)["values"]["published"]
    places = [("fit",), ("summary",), ("variants", 0)]
    keys = [(*place, key) for place in places for key in one_of(published, place)]
    assert len(keys) == 3 + 4 + 6
    for *place, key in keys:
        record_ = json.loads(sound)
        table = one_of(record_["values"]["published"], place)
        table[key] = None
        if change == "missing":
            del table[key]
        path = tmp_path / "predict.json"
        path.write_text(json.dumps(record_))
        with pytest.raises(
            UserError, match=rf"predict\.json is damaged .*({key}|\.fit|\.summary|\.variants\.0)"
        ):
            record.read(path)


@pytest.mark.parametrize("choice", [None, [], {"width": None}, {"width": [32]}, 7, "width"])
def test_a_choice_that_is_none_is_refused_in_a_sentence(tmp_path: Path, choice: Any) -> None:
    found = json.loads((ROOT / "results/predict.json").read_text())
    found["values"]["published"]["variants"][1]["choice"] = choice
    path = tmp_path / "predict.json"
    path.write_text(json.dumps(found))
    with pytest.raises(UserError, match=r"predict\.json is damaged .*variants\.1\.choice"):
        record.read(path)


def one_of(table: Any, place: Sequence[Any]) -> Any:
    """What lies at a place in nested tables."""
    for key in place:
        table = table[key]
    return table


def test_records_of_earlier_schemas_are_of_the_first_benchmark_version(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    record.write(path, example())
    now = json.loads(path.read_text())
    assert (now["schema"], now["benchmark"]) == (record.SCHEMA, record.BENCHMARK) == (3, 1)
    del now["benchmark"]
    path.write_text(json.dumps(now | {"schema": 2}))
    assert record.read(path) == example()
    path.write_text(json.dumps(now | {"benchmark": 0}))
    with pytest.raises(UserError, match="benchmark is 0"):
        record.read(path)


def test_parts_of_another_benchmark_version_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"

    def rows(*keys: str) -> Record:
        about = dict.fromkeys(("dataset", "run", "method", "strategy", "done", "published"), "x")
        values = {"rows": [{"key": key, **about} for key in keys]}
        return Record("card", "a", {}, values, {}, benchmark=record.BENCHMARK)

    record.write(path, rows("one"), parts="rows")
    record.write(path, rows("two"), parts="rows")
    assert [row["key"] for row in record.read(path).values["rows"]] == ["two", "one"]
    monkeypatch.setattr(record, "BENCHMARK", 2)
    record.write(path, rows("three"), parts="rows")
    assert [row["key"] for row in record.read(path).values["rows"]] == ["three"]
