"""The paper's memory axis: the whole suite at its size, in seconds, without a device."""

import time

import pandas as pd
import pytest
from conftest import ROOT, tiny_suite, write_suite

from bench.config import read_suite
from bench.errors import Refusal
from bench.predict import CLASSES, SIZE_PX, predict

SUITE = ROOT / "suites/deepglobe.yaml"


@pytest.mark.slow
def test_every_method_of_the_paper_at_its_size_within_a_minute() -> None:
    begun = time.perf_counter()
    runs = predict(read_suite(SUITE), SIZE_PX, CLASSES)
    assert time.perf_counter() - begun < 60
    assert set(runs) == set(read_suite(SUITE).runs)
    for name, values in runs.items():
        assert values["device_bytes"] > values["weights_bytes"] > 2**20, name
    # What GLNet is for: the whole image in one piece costs most, a branch alone least.
    assert runs["unet-whole"]["device_bytes"] > runs["glnet-collaborative"]["device_bytes"]
    assert runs["glnet-collaborative"]["device_bytes"] > runs["glnet-global"]["device_bytes"]


def test_what_the_suite_calls_published_is_published() -> None:
    table = pd.read_csv(ROOT / "bench/published.csv")
    table = table[table["confidence"] != "recalled"]
    known = set(table["method"] + " / " + table["inference"])
    named = {run.published for run in read_suite(SUITE).runs.values() if run.published}
    assert named
    assert named <= known


def test_a_strategy_that_does_not_exist_is_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    values = tiny_suite()
    values["runs"]["colour"]["strategy"] = "global"
    write_suite(tmp_path, values)
    with pytest.raises(Refusal, match=r"runs\.colour\.strategy"):
        predict(read_suite(tmp_path / "params.yaml"), (64, 64), 3)
