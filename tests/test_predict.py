"""The paper's memory axis: the whole suite at its size, in seconds, without a device."""

import pandas as pd
import pytest
from conftest import ROOT, tiny_suite, write_suite

from bench.config import read_suite
from bench.errors import UserError
from bench.memory.paper_memory import paper_cases
from bench.pipeline.predict_memory import predict
from bench.run import open_run

SUITE = ROOT / "suites/deepglobe.yaml"
PAPER = ("deepglobe", "deepglobe-sweep", "deepglobe-ablation", "isic-ablation")


@pytest.mark.slow
def test_every_method_of_the_paper_at_its_size_within_two_minutes() -> None:
    cases = list(paper_cases())
    rows = predict(cases)
    # The processes predict one case after another; other programs slow them down as well.
    assert sum(row["seconds"] for row in rows) < 240
    assert max(row["seconds"] for row in rows) < 60
    runs = {case.run.name: row for case, row in zip(cases, rows, strict=True)}
    assert set(runs) == set(read_suite(SUITE).runs)
    for name, values in runs.items():
        assert values["device_bytes"] > values["weights_bytes"] > 2**20, name
    # What GLNet is for: the whole image in one piece costs most, a branch alone least.
    assert runs["unet-whole"]["device_bytes"] > runs["glnet-collaborative"]["device_bytes"]
    assert runs["glnet-collaborative"]["device_bytes"] > runs["glnet-global"]["device_bytes"]


@pytest.mark.parametrize(
    "name", ["deepglobe", "deepglobe-sweep", "deepglobe-ablation", "isic-ablation"]
)
def test_what_the_suite_calls_published_is_published(name: str) -> None:
    table = pd.read_csv(ROOT / "bench/published.csv")
    table = table[table["confidence"] != "recalled"]
    known = set(table["method"] + " / " + table["inference"])
    suite = read_suite(ROOT / f"suites/{name}.yaml")
    named = [run.published for run in suite.runs.values() if run.published]
    assert named
    assert set(named) <= known
    assert len(named) == len(set(named)), "a published row is answered once"


def test_every_row_of_the_paper_has_a_run() -> None:
    """Of the main table, Figure 1 and the ablation; recalled rows are no rows."""
    table = pd.read_csv(ROOT / "bench/published.csv")
    table = table[(table["confidence"] != "recalled") & (table["paper"] == "GLNet")]
    rows = set(table["method"] + " / " + table["inference"])
    answered = {
        run.published
        for name in PAPER
        for run in read_suite(ROOT / f"suites/{name}.yaml").runs.values()
    }
    assert rows <= answered


def test_a_strategy_that_does_not_exist_is_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    values = tiny_suite()
    values["runs"] = {"colour": {**values["runs"]["colour"], "strategy": "global"}}
    write_suite(tmp_path, values)
    with pytest.raises(UserError, match=r"runs\.colour\.strategy"):
        open_run(read_suite(tmp_path / "params.yaml"), "colour", classes=3)
