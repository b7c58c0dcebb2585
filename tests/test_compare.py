"""Two states of the results beside each other: out of git, and out of folders."""

import io
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import ROOT, run

from bench import record
from bench.__main__ import main
from bench.commands.difference import Accuracy, compare, open_side
from bench.errors import UserError
from bench.record import Record

SCENES = {name: [[right, 100 - right], [100 - right, right], [0, 0]]
          for name, right in {"a": 60, "b": 70, "c": 80}.items()}  # fmt: skip
BETTER = {name: [[m[0][0] + 5, m[0][1] - 5], [m[1][0] - 5, m[1][1] + 5], m[2]]
          for name, m in SCENES.items()}  # fmt: skip


def evaluated(name: str, scenes: dict[str, Any], data: str = "one", **settings: Any) -> Record:
    values = {"splits": {"test": scenes}, "classes": ["x", "y"], "ignored": []}
    model = {"model": {"seed": 0, "training": settings}}
    return Record("evaluate", name, model, values, {"data_sha256": data})


def measured(name: str, size: int, seconds: list[float]) -> Record:
    sizes = {"allocated": size, "rss": 3 * size, "predicted": size}
    meters = {name: {"bytes": one, "definition": name} for name, one in sizes.items()}
    return Record(
        "measure", name, {}, {"device": "cpu", "meters": meters, "latency_s": seconds}, {}
    )


def write(root: Path, *records: Record, suite: str = "s", machine: str = "desk") -> None:
    for one in records:
        place = (one.stage, machine) if one.stage == "measure" else (one.stage,)
        record.write(root.joinpath("results", suite, *place, f"{one.name}.json"), one)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two commits: `up` gains accuracy and time, `same` nothing, `gone` and `new` are on one side;
    `big` no longer fits, `other` met other scenes."""
    monkeypatch.chdir(tmp_path)
    identity = ("-c", "user.name=x", "-c", "user.email=x@x")
    run("git", "init", "-q", cwd=tmp_path)
    write(
        tmp_path,
        *(evaluated(name, SCENES, steps=10) for name in ("up", "same", "gone", "big", "other")),
        measured("up", 1000, [1.0, 1.1, 1.2]),
        measured("same", 1000, [1.0, 1.1, 1.2]),
        measured("big", 1000, [1.0]),
    )
    run("git", "add", "-A", cwd=tmp_path)
    run("git", *identity, "commit", "-qm", "first", cwd=tmp_path)
    shutil.rmtree(tmp_path / "results")
    lost = replace(measured("big", 1, [1.0]), status="oom", reason="no room")
    write(
        tmp_path,
        evaluated("up", BETTER, steps=20),
        evaluated("same", SCENES, steps=10),
        evaluated("big", SCENES, steps=10, more={"rate": 1}),
        evaluated("other", {**SCENES, "d": SCENES["a"]}, steps=10),
        evaluated("new", SCENES),
        measured("up", 1500, [2.0, 2.2, 2.4]),
        measured("same", 1000, [1.15, 1.3]),
        lost,
    )
    run("git", "add", "-A", cwd=tmp_path)
    run("git", *identity, "commit", "-qm", "second", cwd=tmp_path)
    return tmp_path


def test_two_commits_run_by_run(repository: Path) -> None:
    shutil.rmtree("results")  # they are read from git alone
    found = {c.run: c for c in compare(open_side("HEAD~1"), open_side("HEAD"))}
    up, same = found["up"], found["same"]
    assert (up.suite, up.machine, up.where) == ("s", "desk", "both")
    assert up.accuracy.difference == pytest.approx(75 / 125 - 70 / 130)
    assert up.accuracy.low is not None
    assert 0 < up.accuracy.low < up.accuracy.difference
    assert up.accuracy.verdict == "better"
    assert up.memory["allocated"].ratio == 1.5
    assert up.memory["rss"].second_bytes == 4500
    assert up.latency is not None
    assert (up.latency.ratio, up.latency.within_spread) == (pytest.approx(2), False)
    assert up.settings == {"model.training.steps": (10, 20)}
    assert (same.accuracy.verdict, same.accuracy.low, same.settings) == ("same", 0, {})
    assert same.latency is not None
    assert same.latency.within_spread
    assert (found["gone"].where, found["new"].where) == ("first", "second")
    assert found["big"].status == ("ok", "oom")
    assert found["big"].settings == {"model.training.more.rate": (None, 1)}
    assert found["big"].latency is None
    assert found["other"].accuracy.verdict == "no interval"
    assert "different scenes" in found["other"].notes[0]


def test_versions_of_the_benchmark_are_not_compared(repository: Path) -> None:
    for stage in ("evaluate", "measure/desk"):
        path = Path(f"results/s/{stage}/up.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | {"benchmark": 2}))
    (up,) = (c for c in compare(open_side("HEAD"), open_side(".")) if c.run == "up")
    assert (up.accuracy, up.memory, up.latency) == (Accuracy(), {}, None)
    assert len([note for note in up.notes if "benchmark version" in note]) == 2


def shown(monkeypatch: pytest.MonkeyPatch, capsys: Any, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["glnet-bench", "compare", *arguments])
    main()
    return str(capsys.readouterr().out)


def test_what_is_printed(repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """A commit against the folder that lies here."""
    lines = shown(monkeypatch, capsys, "HEAD~1").splitlines()
    (up,) = (line for line in lines if line.startswith("up"))
    assert "53.8      60.0      +6.2 (" in up
    assert "better" in up
    assert "allocated = 1.500" in up
    assert up.endswith("2.20 s / 1.10 s = 2.00")
    (same,) = (line for line in lines if line.startswith("same"))
    assert same.endswith("within spread")
    assert "only in A: gone" in lines
    assert "only in B: new" in lines
    assert "status of big: ok -> oom" in lines
    assert "model.training.steps: 10 -> 20 (up)" in lines
    assert "model.training.more.rate: not set -> 1 (big)" in lines
    assert any(line.startswith("evaluated on different scenes") for line in lines)
    values = json.loads(shown(monkeypatch, capsys, "HEAD~1", "HEAD", "--json"))
    assert values["second"].startswith("commit ")
    assert {one["run"]: one["status"][1] for one in values["runs"]}["big"] == "oom"
    frame = pd.read_csv(io.StringIO(shown(monkeypatch, capsys, "HEAD~1", "HEAD", "--csv")))
    up_row = frame.set_index("run").loc["up"]
    assert up_row.allocated_second_bytes == 1500
    assert up_row.miou_difference == pytest.approx(75 / 125 - 70 / 130)


def test_folders_of_a_project_of_results_and_of_a_suite_are_the_same(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree("results/s", "elsewhere/t")
    for name in (".", "results", "results/s", "HEAD", "HEAD:results", "HEAD:results/s"):
        (change, *_) = compare(open_side(name), open_side("elsewhere/t"))
        assert change.accuracy.verdict == "same"
    with monkeypatch.context() as patch:
        patch.chdir("results")
        assert open_side("HEAD:s").suites == open_side("s").suites
    write(repository, measured("up", 10, [1.0]), suite="u", machine="laptop")
    for name in ("s", "u"):
        assert {c.suite for c in compare(open_side("."), open_side("."), name)} == {name}
    assert {c.suite for c in compare(open_side("HEAD"), open_side("."))} == {"s"}


def test_what_cannot_be_compared_says_why(repository: Path) -> None:
    other = repository / "other"
    write(other, measured("up", 10, [1.0]), machine="laptop")
    write(other, evaluated("up", SCENES, data="two"))
    (up, *_) = [c for c in compare(open_side("."), open_side("other")) if c.run == "up"]
    assert (up.machine, up.memory, up.latency) == (None, {}, None)
    assert up.accuracy.verdict == "no interval"
    assert up.notes == (
        "the prepared data differ: no interval for mIoU",
        "measured on different machines (desk; laptop): neither memory nor latency can be compared",
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "'nowhere' is neither a folder nor a commit"),
        ("-p", "'-p' is neither a folder nor a commit"),
        ("HEAD:docs", r"commit \w{10} \(HEAD:docs\) has no record of a run"),
        ("empty", r"folder empty \(empty\) has no record of a run"),
        ("old", "old: s/evaluate/x.json has schema 0, this code reads 3: compare it with the code"),
        ("broken", "broken: s/evaluate/x.json is damaged"),
    ],
)
def test_a_side_that_cannot_be_read_is_refused(repository: Path, name: str, message: str) -> None:
    Path("empty").mkdir()
    for folder, content in (("old", '{"schema": 0}'), ("broken", "{")):
        path = Path(folder, "results/s/evaluate/x.json")
        path.parent.mkdir(parents=True)
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        open_side(name)


def test_sides_without_a_common_suite_are_refused(repository: Path) -> None:
    write(repository / "two", evaluated("up", SCENES), suite="p")
    write(repository / "two", evaluated("up", SCENES), suite="q")
    with pytest.raises(UserError, match=r"No suite is on both sides: \. has s; two has p, q\."):
        compare(open_side("."), open_side("two"))
    with pytest.raises(UserError, match="No suite 'p' is on both sides"):
        compare(open_side("."), open_side("two"), "p")


def test_a_command_starts_without_what_only_others_need() -> None:
    """torch alone takes two seconds."""
    code = "import sys; from bench.__main__ import main; main()"
    listed = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules))"
    for command, needs_torch in ("compare", False), ("estimate", True):
        done = run(sys.executable, "-c", f"{listed}; {code}", command, "--help", cwd=ROOT)
        assert done.stdout.splitlines()[-1] == str(needs_torch)
    report = "import sys, bench.report.__main__; sys.exit('torch' in sys.modules)"
    run(sys.executable, "-c", report, cwd=ROOT)
