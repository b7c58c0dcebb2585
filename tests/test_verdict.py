"""Published, ours, difference and verdict, with numbers worked out by hand."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench.config import Metric, ModelConfig, RunConfig, Training
from bench.errors import UserError
from bench.record import Record, Status
from bench.report import findings
from bench.report import runs as all_runs
from bench.report.load_records import Entry
from bench.report.published import verdict_section

MIB = 2**20


def entry(
    name: str,
    published: str | None,
    right: int | None = None,
    nvml: int | None = None,
    status: Status = "ok",
    metric: Metric | None = None,
    dataset: str = "deepglobe",
) -> Entry:
    """A run on two classes that calls `right` of 100 pixels of each right, or was never run.

    IoU of each class: right / (200 - right)."""
    matrix = [[right, 100 - right], [100 - right, right], [0, 0]] if right is not None else None
    evaluation = {
        "classes": ["land", "water"],
        "ignored": [],
        "rare": [],
        "splits": {"test": {"a": matrix}, "val": {}},
    }
    meters = {"nvml" if nvml else "allocated": {"bytes": nvml or 5, "definition": "of a GPU"}}
    measurement = {"meters": meters, "latency_s": [1.0], "height_px": 10, "width_px": 10}
    model = ModelConfig(dataset, "baselines", "nothing", {"network": "unet2015"}, Training({}))
    known = matrix is not None or status != "ok"
    return Entry(
        name=name,
        run=RunConfig("m", "patch", published=published, metric=metric),
        model=model,
        predictions=Path("nowhere"),
        evaluated=Record("evaluate", name, {}, evaluation if matrix else {}, {}, status)
        if known
        else None,
        measured=Record("measure", name, {}, measurement, {}) if matrix else None,
    )


def row(one: Entry) -> Any:
    frame = verdict_section([one], all_runs.runs([one])).rows
    assert len(frame) == 1
    return frame.iloc[0]


# IoU 55/145 = 37.93 %, 54/146 = 36.99 %, 52/148 = 35.14 %, 70/130 = 53.8 %; published 37.3 %.
@pytest.mark.parametrize(
    ("right", "difference", "said"),
    [
        (54, -0.31, "reproduced within 0.5 points"),
        (55, 0.63, "reproduced within 1.0 points"),
        (53, -1.246, "reproduced within 2.0 points"),
        (52, -2.16, "not reproduced"),
        (70, 16.55, "not reproduced"),
    ],
)
def test_accuracy_by_hand(right: int, difference: float, said: str) -> None:
    found = row(entry("a", "UNet / patch", right))
    assert found.published_miou == pytest.approx(0.373)
    assert found.difference_points == pytest.approx(difference, abs=0.005)
    assert found.verdict == said
    assert found.definition == "official"


@pytest.mark.parametrize(
    ("nvml", "said"),
    [
        (949 * MIB, "reproduced within 5%"),
        (round(949 * MIB * 1.14), "reproduced within 15%"),
        (round(949 * MIB * 0.8), "not reproduced"),
        (None, "not measured on a GPU"),
    ],
)
def test_memory_is_compared_by_process_total(nvml: int | None, said: str) -> None:
    found = row(entry("a", "UNet / patch", 54, nvml))
    assert found.published_bytes == 949 * MIB
    assert found.memory_verdict == said


def test_what_did_not_run_says_so() -> None:
    found = row(entry("a", "UNet / patch"))
    assert (found.verdict, found.memory_verdict) == ("not run", "not run")
    assert pd.isna(found.miou)
    assert row(entry("a", "UNet / patch", status="oom")).verdict == "not reproduced: out of memory"
    assert row(entry("a", "UNet / patch", status="failed")).verdict == "failed"
    other = row(entry("a", "UNet / patch", 54, dataset="earthcover"))
    assert other.verdict == other.memory_verdict == "another data set"
    none = row(entry("a", "GLNet c2f: G->L / collaborative", 54, dataset="isic"))
    assert none.memory_verdict == "none published"


def test_a_stated_definition_is_what_is_compared() -> None:
    metric = Metric(leave_out=("water",), absent="zero")
    one = entry("a", "UNet / patch", 54, metric=metric)
    found = row(one)
    assert found.definition == "as stated"
    assert found.miou == pytest.approx(54 / 146)
    runs = all_runs.runs([one])
    assert runs.miou_stated[0] == pytest.approx(54 / 146)
    assert "left out of the mean: water" in findings.definitions([one])["miou_stated"]
    wrong = entry("a", None, 54, metric=Metric(leave_out=("watr",)))
    with pytest.raises(UserError, match=r"runs\.a\.metric\.leave_out names 'watr'.* land, water"):
        all_runs.runs([wrong])


def test_only_runs_that_answer_to_a_row_have_a_line_and_rows_must_exist() -> None:
    runs = [entry("a", None, 54), entry("b", "UNet / global", 54)]
    assert list(verdict_section(runs, all_runs.runs(runs)).rows.run) == ["b"]
    assert verdict_section(runs[:1], all_runs.runs(runs[:1])).rows.empty
    for key in ("VNet / patch", "GLNet (coarse-to-fine) / coarse-to-fine"):  # recalled
        with pytest.raises(UserError, match=r"runs\.x\.published"):
            verdict_section([entry("x", key)], all_runs.runs([entry("x", key)]))


def test_the_table_reads() -> None:
    runs = [entry("a", "UNet / patch", 54, 949 * MIB), entry("b", "UNet / global")]
    section = verdict_section(runs, all_runs.runs(runs))
    heads = [cell.text for cell in section.head()]
    lines = [dict(zip(heads, (c.text for c in row), strict=True)) for row in section.cells()]
    assert [line["difference, points"] for line in lines] == ["-0.3", "–"]
    assert [line["verdict"] for line in lines] == ["reproduced within 0.5 points", "not run"]
    assert [line["number"] for line in lines] == ["printed", "printed"]
