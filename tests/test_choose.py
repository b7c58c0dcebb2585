"""`glnet-bench choose`: what fits, ranked by recorded accuracy, and what the records cannot tell."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, call_command

from bench import record
from bench.commands import choose, question
from bench.commands.choose import Choice, advice
from bench.commands.estimate import GIB, MIB
from bench.commands.question import Answer, Question, known_overhead, named
from bench.config import read_suite
from bench.report import bootstrap
from bench.report.bootstrap import Pairs, Sample
from bench.report.load_records import load_records

SCENES = tuple("abcdefgh")


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def sample(name: str, right: list[int]) -> Sample:
    """Two classes of 100 pixels a scene, of which so many are found."""
    found = [[[n, 100 - n], [100 - n, n], [0, 0]] for n in right]
    return Sample(name, name, SCENES, np.array([found], np.int64), ("x", "y"))


def choices(**sizes: int) -> tuple[list[Choice], Pairs]:
    """Runs in the order of their accuracy: `best` and `close` differ by chance, `poor` does not."""
    right = {
        "best": [90, 80, 90, 80, 90, 80, 90, 80],
        "close": [80, 89, 80, 89, 80, 89, 80, 89],
        "poor": [60] * 8,
    }
    samples = tuple(sample(name, right[name]) for name in sizes)
    run = named("enet", None, "patch", {"size_px": 64, "overlap_px": 8}, 2)
    made = [
        Choice(
            one.run,
            Question(replace(run, name=one.run), (128, 128)),
            bootstrap.interval(one),
            sizes[one.run],
            seconds=None if one.run == "poor" else 2.0,
        )
        for one in samples
    ]
    return made, Pairs(samples, {one.run: one.run for one in samples})


def test_what_fits_is_ranked_and_what_cannot_be_separated_is_said() -> None:
    lines = advice(*choices(best=300 * MIB, close=200 * MIB, poor=100 * MIB), 400 * MIB)
    assert [line.split()[0] for line in lines[0].splitlines()] == ["run", "best", "close", "poor"]
    assert lines[0].splitlines()[1].split()[1] == "73.9"  # 85 of 115 pixels of each class
    said = " ".join(lines[1:])
    assert "cannot separate it from close; of them close needs the least memory" in said
    assert "More memory buys no accuracy" in said


def test_what_the_next_gib_buys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "suited", lambda *_: (None, "smaller patches would do."))
    made, pairs = choices(best=2 * GIB, poor=100 * MIB)
    lines = advice(made, pairs, GIB)
    assert "poor is the most accurate of these." in lines
    assert "smaller patches would do." in lines
    assert "The next GiB buys best: 73.9 % in 2048.0 MiB." in lines
    assert "The next GiB buys nothing; best with 73.9 % needs 2048.0 MiB." in advice(
        made, pairs, GIB - 1
    )
    made, pairs = choices(best=2 * GIB, close=100 * MIB)
    assert any("cannot separate from close" in line for line in advice(made, pairs, GIB))
    assert "Nothing fits: close needs the least, 100.0 MiB." in advice(made, pairs, MIB)


def test_times_that_are_not_recorded_are_not_guessed() -> None:
    made = choices(best=MIB, poor=MIB)
    lines = advice(*made, GIB, limit_s=3.0)
    assert "poor" not in lines[0]
    assert "The records cannot tell how long these take: poor." in lines
    assert "No run with a recorded time is as fast." in advice(*made, GIB, limit_s=1.0)


def test_a_sub_batch_makes_it_fit_and_changes_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = choices(best=10)
    run = named("glnet", None, "collaborative", {"sub_batch": 8}, 2)
    one = replace(made[0], question=replace(made[0].question, run=run))
    monkeypatch.setattr(question, "needs", lambda question: 100 * question.run.spec.sub_batch)
    found, said = choose.suited(one, 350)
    assert found is not None
    assert (found.setting, found.needed, said) == ("sub_batch=3", 300, "")
    # One patch at a time is too much: smaller ones, whose accuracy nobody measured.
    monkeypatch.setattr(question, "needs", lambda question: question.run.spec.patch_px)
    found, said = choose.suited(one, 300)
    assert found is None
    assert "patches of 288 px instead of" in said
    assert "its accuracy with them is not recorded" in said


def test_time_is_scaled_by_operations_and_belongs_to_its_device() -> None:
    measured = {"device": "cuda", "latency_s": [1.0, 3.0, 2.0], "flops": 10}
    measured |= {"height_px": 64, "width_px": 64}
    question = choices(best=1)[0][0].question
    found: Any = Answer("inference", SimpleNamespace(flops=25), 0)  # type: ignore[arg-type]
    entry: Any = SimpleNamespace(measurement=measured)
    assert choose.seconds(entry, question, found) == 5.0
    assert choose.seconds(entry, replace(question, device="cpu"), found) is None
    measured["flops"] = 0  # then by pixels
    assert choose.seconds(entry, question, found) == 2.0 * (128 * 128) / (64 * 64)
    assert choose.seconds(SimpleNamespace(measurement={}), question, found) is None  # type: ignore[arg-type]


def test_the_command_reads_the_committed_records(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def answers(questions: Any) -> Any:
        for number, asked in enumerate(questions):
            assert asked.run.model.classes == 7 if asked else None
            yield Answer("inference", SimpleNamespace(flops=0), number * GIB)  # type: ignore[arg-type]

    monkeypatch.setattr(choose, "with_answers", answers)
    monkeypatch.setattr(choose, "suited", lambda *_: (None, ""))
    words = ("--size", "5000x4000", "--memory", "2GiB", "--suite", "earthcover-long")
    call_command(choose.command, *words, "--card", "h100")
    said = capsys.readouterr().out
    entries = load_records(read_suite(ROOT / "suites/earthcover-long.yaml")).entries
    best = max(
        (e for e in entries if e.evaluation), key=lambda e: bootstrap.miou(bootstrap.of_entry(e))
    )
    assert said.splitlines()[3].split()[0] == best.name
    assert "on 4 test images of up to 720 × 720 px" in said
    assert "(measured, " in said


def test_a_card_is_known_by_part_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    found = known_overhead("h100")
    assert found.measured
    assert found.source.endswith("records of this card")
    assert not known_overhead("A100").measured
    assert not known_overhead("").measured
    monkeypatch.setattr(record, "RESULTS", ROOT / "nowhere")
    assert known_overhead("h100").family == "H100"
