"""Runs of several seeds as one, and what is said of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.config import ModelConfig, RunConfig, Training
from bench.record import Record
from bench.report import bootstrap, evaluations, figures, findings
from bench.report import runs as all_runs
from bench.report.load_records import Entry


def entry(name: str, strategy: str, seed: int, ceilings: dict[str, float], **spec: Any) -> Entry:
    model = ModelConfig("drawn", "glnet", "nothing", spec, Training({}), seed)
    values = {"splits": {}, "ceilings": ceilings}
    return Entry(
        name=name,
        run=RunConfig(name, strategy),
        model=model,
        predictions=Path(),
        evaluated=Record("evaluate", name, {}, values, {}),
        measured=None,
    )


LIMITS = {"one patch": 0.42, "everything": 0.9}
ENTRIES = [
    *(entry(f"local-seed{n}", "local", n, LIMITS, phases=["local"]) for n in range(3)),
    *(entry(f"collaborative-seed{n}", "collaborative", n, LIMITS) for n in range(3)),
    *(entry(f"apart-seed{n}", "collaborative", n, LIMITS, sharing="none") for n in range(2)),
    entry("once", "global", 0, LIMITS),
]
MIOUS = {
    e.name: (miou,)
    for e, miou in zip(ENTRIES, (0.3, 0.4, 0.35, 0.7, 0.75, 0.8, 0.5, 0.6, 0.2), strict=True)
}


def test_runs_that_differ_in_their_seed_alone_are_one_group() -> None:
    found = evaluations.groups(ENTRIES, MIOUS)
    assert [(g.name, len(g.mious), g.feature_sharing) for g in found] == [
        ("local", 3, True),
        ("collaborative", 3, True),
        ("apart", 2, False),
    ]
    assert found[1].mean == pytest.approx(0.75)
    half = 4.302653 * 0.05 / 3**0.5
    assert found[1].interval == pytest.approx((0.75 - half, 0.75 + half))
    assert all_runs.ceilings(ENTRIES) == LIMITS
    unevaluated = {name: value for name, value in MIOUS.items() if "local" not in name}
    assert [g.name for g in evaluations.groups(ENTRIES, unevaluated)] == ["collaborative", "apart"]


def test_what_is_said_is_worked_out() -> None:
    said = findings.seed_sentences(evaluations.groups(ENTRIES, MIOUS), LIMITS)
    assert said == [
        "collaborative: 75.0 % mIoU, mean of 3 seeds; 40.0 points above local.",
        "collaborative passes the limit of: one patch.",
        "Without feature sharing (the aggregation alone, apart) collaborative reaches 55.0 %: "
        "sharing adds 20.0 points.",
    ]
    worse = {**MIOUS, **{f"collaborative-seed{n}": (0.3,) for n in range(3)}}
    said = findings.seed_sentences(evaluations.groups(ENTRIES, worse), LIMITS)
    assert said[0].endswith("5.0 points below local.")
    assert "sharing adds nothing. This is a property of the architecture" in said[-1]


def test_the_figure_shows_every_seed_and_every_ceiling() -> None:
    found = evaluations.groups(ENTRIES, MIOUS)
    axes = figures.charts.seeds(found, LIMITS).axes[0]
    assert sorted(x for dots in axes.collections for x, _ in dots.get_offsets()) == sorted(
        100 * MIOUS[e.name][0] for e in ENTRIES if e.name != "once"
    )
    written = {text.get_text() for text in axes.texts}
    assert {"75.0", "55.0", "one patch 42.0", "everything 90.0"} <= written
    assert len(all_runs.seeds_section("drawn", found, LIMITS).rows) == 3


def test_a_line_with_several_seeds_is_a_group_by_itself() -> None:
    values = {
        "splits": {"test": {"a": [[3, 1], [1, 3], [0, 0]]}},
        "other_seeds": {"7": {"test": {"a": [[4, 0], [0, 4], [0, 0]]}}},
        "classes": ["x", "y"],
        "ignored": [],
        "rare": [],
    }
    model = ModelConfig("drawn", "glnet", "nothing", {}, Training({}), seeds=(5, 7))
    both = Entry(
        "both",
        RunConfig("m", "local"),
        model,
        Path(),
        Record("evaluate", "both", {}, values, {}),
        None,
    )
    mious = {"both": evaluations.seed_mious(both), "once": (0.2,)}
    (found,) = evaluations.groups([both, ENTRIES[-1]], mious)
    assert (found.name, found.mious) == ("both", (3 / 5, 1))
    (sample,) = bootstrap.compare([both]).samples
    assert bootstrap.miou(sample) == all_runs.runs([both]).miou[0] == pytest.approx(0.8)
    assert all_runs.runs([both]).seeds[0] == 2


def test_runs_of_several_seeds_are_one_in_the_table_of_pairs() -> None:
    def with_scene(one: Entry, right: int) -> Entry:
        values = {"splits": {"test": {"a": [[right, 9 - right], [0, 9], [0, 0]]}},
                  "classes": ["x", "y"], "ignored": []}  # fmt: skip
        return replace(one, evaluated=Record("evaluate", one.name, {}, values, {}))

    found = bootstrap.compare([with_scene(one, n % 9) for n, one in enumerate(ENTRIES)])
    assert [one.run for one in found.samples] == ["local", "collaborative", "apart", "once"]
    one = found.between("local-seed0", "apart-seed1")
    assert one is not None
    assert (one.first, one.second) == ("local", "apart")
    back = found.between("apart-seed0", "local-seed2")
    assert back is not None
    assert back.value == -one.value
    assert found.between("local-seed0", "local-seed1") is None
